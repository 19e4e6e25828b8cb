"""`launch check` on two hosts with real ssh, sshd and pdsh: green where all is well, and each fault in its own words."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from sycoca_ds.launch.check import CheckCommand
from sycoca_ds.launch.findings import COLUMNS
from tests.worlds import REPOSITORY
from tests.worlds.data.data_sets import write_data_set
from tests.worlds.machines.two_hosts import HOME, SYSTEM_PATH, TwoHosts, needs_two_hosts, two_hosts

pytestmark = [needs_two_hosts, pytest.mark.slow]
TEST_DISK = ("--disk-gib", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("check") / "train", [8, 8])


def check(hosts: TwoHosts, *words: str, folder: Path = REPOSITORY) -> tuple[int, str]:
    command = ("python", "-m", "sycoca_ds.launch", "check", "--hostfile", str(hosts.hostfile), *TEST_DISK, *words)
    return hosts.finish(hosts.start(hosts.a, *command, folder=folder, PYTHONPATH=str(REPOSITORY)), limit=150)


def red(output: str) -> dict[tuple[str, str], str]:
    """(check, host) -> the line about it, of those that are red."""
    found = {}
    for line in output.splitlines():
        if match := re.match(r"FAIL (\w+), ([^:]+): (.*)", line):
            found |= {(match[1], host): match[3] for host in match[2].split(", ")}
    return found


def test_green_where_all_is_well(data: Path, tmp_path: Path) -> None:
    with two_hosts(tmp_path / "hosts") as hosts:
        hosts.accept_keys()
        hosts.write_settings()
        status, output = check(hosts, "--data", str(data), "--out", str(tmp_path / "run"), "--json")
        assert not list(tmp_path.glob(".launch_check_*")), "the files that the hosts wrote for each other are left"
    record = json.loads(output[output.index("{") :])
    assert status == 0 and record["ok"], [one for one in record["findings"] if one["state"] == "fail"]
    assert (record["world_size"], record["master_addr"], record["master_port"]) == (2, "10.77.0.1", 29500)
    states = {(one["check"], one["host"]): one["state"] for one in record["findings"]}
    assert {check for check, _ in states} == set(COLUMNS), "a check that nothing looked at"
    for name in ("node-a", "node-b"):
        assert {states[check, name] for check in COLUMNS[2:] if check != "gpus"} == {"ok"}
        facts = record["hosts"][name]
        assert facts["look"]["installed"]["deepspeed"] == "0.19.8"
        assert states["gpus", name] == ("ok" if facts["gpus"] else "warn")


def test_each_fault_in_its_own_words(data: Path, tmp_path: Path) -> None:
    """On both: Debian's /etc/hosts, no keepalive. Where the launch starts: a comment in .deepspeed_env, a wrong line in the
    hostfile. On node-a: a port that is taken. On node-b: another revision, no ninja, no data, a run folder of its own."""
    other, run = tmp_path / "policy.py", tmp_path / "shared"
    run.mkdir()
    other.write_text((REPOSITORY / "sycoca_ds/engine/policy.py").read_text() + "\n# changed\n")
    with two_hosts(tmp_path / "hosts", debian=True) as hosts:
        hosts.accept_keys()
        hosts.hostfile.write_text(hosts.hostfile.read_text() + "node-c slot=1\n")
        hosts.a.run(f"printf 'OMP_NUM_THREADS=1\\n# threads\\n' > {HOME}/.deepspeed_env")
        hosts.b.run(f"mount --bind {other} {REPOSITORY}/sycoca_ds/engine/policy.py")
        hosts.b.run(f"mount -t tmpfs tmpfs {data.parent}; mount -t tmpfs tmpfs {run}")
        hosts.b.run(f"for f in {Path(sys.executable).parent}/ninja $(which -a ninja); do mount --bind /dev/null $f; done")
        hosts.a.run(f"env -i {shutil.which('sshd', path=SYSTEM_PATH)} -f {hosts.a.folder}/sshd_config -p 29500")  # listens there
        status, output = check(hosts, "--data", str(data), "--out", str(run))
    found = red(output)
    assert status == 1, output
    assert f"{hosts.hostfile}:3: 'node-c slot=1' -> expected `NAME slots=NUMBER`" in found["hostfile", "here"]
    assert ".deepspeed_env:2: '# threads' is a comment, on which DeepSpeed stops" in found["env", "here"]
    for name in ("node-a", "node-b"):
        assert "its own name resolves to 127.0.1.1" in found["name", name]
        assert "write GLOO_SOCKET_IFNAME=eth0 into .deepspeed_env" in found["name", name]
        assert "ssh never asks" in found["keepalive", name] and "ServerAliveInterval 15" in found["keepalive", name]
    assert "port 29500 cannot be had" in found["master", "node-a"] and "--master_port" in found["master", "node-a"]
    assert "runs another revision than node-a" in found["code", "node-b"]
    assert found["code", "node-b"].split(" -> ")[0].endswith(": sycoca_ds/engine/policy.py")
    assert "no ninja on PATH" in found["operators", "node-b"] and "ninja" in found["operators", "node-b"].split(" -> ")[1]
    assert str(data) in found["data", "node-b"] and "mount or copy it" in found["data", "node-b"]
    assert "is another one than on node-a" in found["folder", "node-b"] and "--run.out" in found["folder", "node-b"]
    expected = {"hostfile", "env", "name", "keepalive", "master", "code", "operators", "data", "folder"}
    assert {check for check, _ in found} == expected, output


def test_hosts_that_ssh_does_not_reach(tmp_path: Path) -> None:
    """A key that is not known, one that is not let in, and a host that is not there, told apart, in the time of one wait."""
    with two_hosts(tmp_path / "hosts") as hosts:
        hosts.write_settings()
        hosts.hostfile.write_text("node-a slots=1\nnode-b slots=1\n10.77.0.9 slots=1\nnowhere slots=1\n")
        began = time.monotonic()
        status, output = check(hosts)
        assert status == 1 and time.monotonic() - began < 60
        found = red(output)
        for name in ("node-a", "node-b"):
            assert "its host key is not known -> compare and accept it once" in found["ssh", name]
            assert "ssh-keyscan" in found["ssh", name]
        assert "it does not answer within 10 s" in found["ssh", "10.77.0.9"] or "No route" in found["ssh", "10.77.0.9"]
        assert "its name cannot be resolved" in found["ssh", "nowhere"]
        assert {check for check, _ in found} == {"ssh"} and "\n3 red" in output, output
        assert "- everything else, node-a, node-b, 10.77.0.9, nowhere: not checked: no ssh\n" in output
        hosts.accept_keys()
        hosts.hostfile.write_text("node-b slots=1\n")
        (hosts.b.folder / "empty").touch()
        folder = tmp_path / "shared/start"
        folder.mkdir(parents=True)
        hosts.b.run(f"mount --bind {hosts.b.folder}/empty {HOME}/.ssh/authorized_keys")
        found = red(check(hosts)[1])
        assert "ssh would ask for a password, or refuses the key -> `ssh-copy-id node-b`" in found["ssh", "node-b"]
        hosts.b.run(f"umount {HOME}/.ssh/authorized_keys; mount -t tmpfs tmpfs {folder.parent}")
        found = red(check(hosts, folder=folder)[1])
        assert f"the folder {folder} is not there, in which the ranks would start" in found["ssh", "node-b"]


@pytest.mark.full
def test_closed_ports_are_one_red_line(tmp_path: Path) -> None:
    with two_hosts(tmp_path / "hosts") as hosts:
        hosts.accept_keys()
        hosts.write_settings()
        for host in (hosts.a, hosts.b):
            host.run("ip rule add pref 1 ipproto tcp sport 22 lookup main")  # what sshd answers
            host.run("ip rule add pref 2 to 10.77.0.0/24 ipproto tcp dport 1024-65534 unreachable")
        status, output = check(hosts)
    found = red(output)
    assert status == 1 and set(found) == {("master", "node-b")} and "open all ports between the hosts" in found["master", "node-b"]
    assert "- reach, node-a, node-b: does not reach the next host, for which master says what to do\n" in output, output
    assert output.endswith("\n1 red\n")


@pytest.mark.full
def test_a_login_that_talks_and_an_address_that_nobody_reaches(tmp_path: Path) -> None:
    """DeepSpeed asks the first host for its address, and takes the first word for it."""
    with two_hosts(tmp_path / "hosts") as hosts:
        hosts.accept_keys()
        hosts.write_settings()
        hosts.a.run(f"echo 'echo Welcome to node-a' > {HOME}/.bashrc; ip link add docker0 type veth peer name docker1")
        hosts.a.run("ip addr add 10.10.0.1/16 dev docker0; ip link set docker0 up")
        first = hosts.a.run("hostname -I").split()[0]
        status, output = check(hosts, "--master-addr", "10.10.0.1")
        found = red(output)
        assert status == 1 and "its login prints 'Welcome to node-a' unasked" in found["ssh", "node-a"], output
        assert "does not reach rank 0 at 10.10.0.1:29500" in found["master", "node-b"]
        assert "launch with --master_addr 10.77.0.1" in found["master", "node-b"], (first, output)


def test_another_file_given_for_the_hostfile_is_said_in_some_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in one for each of its own."""
    monkeypatch.setattr(shutil, "which", lambda program, **_: program)  # no host is asked
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for wrong, lines in ((5, 5), (6, 6), (300, 6)):
        (tmp_path / "page").write_text("a line of text\n" * wrong)
        assert CheckCommand(tmp_path / "page").run() == 1
        output = capsys.readouterr().out
        assert output.count("FAIL hostfile, here: ") == lines, output
        assert (f"{wrong - 5} more of {tmp_path}/page's lines are wrong -> see that it is the hostfile" in output) == (wrong > 5)
