"""Two hosts on one Linux machine: network, process, mount, name and IPC namespaces of their own, each with its /dev/shm, ~/.ssh
and sshd, and a pair of virtual network cards between them. They share the disk: the shared file system of a cluster.

    with two_hosts(tmp_path) as hosts:
        hosts.accept_keys()
        status, output = hosts.finish(hosts.deepspeed("sycoca_ds/train.py", ...))

Needs root and some programs; `needs_two_hosts` skips a test where they are missing, and says which. However a test ends, its hosts
end with it: they read a pipe that this process holds, and with a host all that runs on it is gone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.worlds import REPOSITORY
from tests.worlds.machines import slow_link
from tests.worlds.processes.launching import LIMIT
from tests.worlds.processes.watching import processes, wait_until

PROGRAMS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "taskset": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client",
    "pdsh": "pdsh",
    "hostname": "hostname",
}
"""Program -> Debian's package."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME = pwd.getpwuid(os.getuid()).pw_dir
NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--ipc")

INIT = """
hostname {name}
mount --make-rprivate /
mount -t tmpfs tmpfs {folder}/home; mkdir {folder}/home/up {folder}/home/work
mount -t overlay overlay -o lowerdir={home},upperdir={folder}/home/up,workdir={folder}/home/work {home}
rm -rf {home}/.ssh {home}/.deepspeed_env; mkdir {home}/.ssh; cp {folder}/ssh/* {home}/.ssh/; chmod -R go= {home}/.ssh
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs tmpfs /run; mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
for _ in $(seq 200); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.05; done
ip addr add {address}/24 dev eth0 && ip link set eth0 up || exit 1
env -i PATH={path} HOME={home} {sshd} -f {folder}/sshd_config -E {folder}/sshd.log || exit 1
touch {folder}/ready
cat >/dev/null  # until the test that holds the other end is gone; bash meanwhile buries what the host's processes leave
"""
TRIAL = """
hostname x; ip link set lo up; ip link add eth0 type veth peer name eth1
mount -t tmpfs x /mnt; mkdir /mnt/up /mnt/work /mnt/all
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work /mnt/all
"""
"""What a container may refuse."""
SSHD = """
Port 22
HostKey {folder}/hostkey
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
PidFile {folder}/sshd.pid
"""


@functools.cache
def what_is_missing() -> str:
    """Why there can be no two hosts here; empty if there can."""
    if os.getuid() != 0:
        return "two hosts need root, for namespaces and a virtual network"
    gone = [f"{program} ({package})" for program, package in PROGRAMS.items() if shutil.which(program, path=SYSTEM_PATH) is None]
    if gone:
        return f"two hosts need the program{'s' * (len(gone) > 1)} {', '.join(gone)}"
    words = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "bash", "-ec", TRIAL]
    tried = subprocess.run(words, capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"two hosts need namespaces, which are refused here: {tried.stderr.strip()[:100]}"


needs_two_hosts = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


@dataclass(frozen=True)
class Node:
    """One of the hosts."""

    name: str
    address: str
    folder: Path
    """Its files on the disk that both share: hostkey, sshd.log, ..."""
    processors: str
    """Its part of this machine's, as taskset counts them: ranks of two hosts do not share cores."""
    holder: subprocess.Popen
    """Ends with its standard input, and the host with it."""

    @property
    def init(self) -> int:
        """The host's first process, as this machine counts."""
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children")
        assert wait_until(lambda: children.exists() and children.read_text().split(), 10), f"{self.name} did not start"
        return int(children.read_text().split()[0])

    def start(self, *words: str, **more) -> subprocess.Popen:
        """Starts a program on the host, with the environment of this process unless `env` gives another."""
        enter = ["nsenter", "-t", str(self.init), "-n", "-p", "-m", "-u", "-i", "--", "taskset", "-c", self.processors]
        return subprocess.Popen([*enter, *words], **more)

    def run(self, script: str) -> str:
        """What a shell on the host prints."""
        process = self.start("bash", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, f"{self.name}: {script}: {output}"
        return output

    def pids(self, text: str = "") -> list[int]:
        """The host's processes with `text` among their words, as this machine counts; its first one is not among them."""
        own, found = os.readlink(f"/proc/{self.init}/ns/pid"), []
        for process in processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if os.readlink(f"/proc/{process.pid}/ns/pid") == own and text in words and process.pid != self.init:
                    found.append(process.pid)
        return found

    def link(self, state: str) -> None:
        """Its network card: "up" or "down"."""
        self.run(f"ip link set eth0 {state}")


@dataclass(frozen=True)
class TwoHosts:
    a: Node
    """Where the launch starts and rank 0 runs."""
    b: Node
    hostfile: Path
    cable: subprocess.Popen | None = None

    def delay(self, seconds: float) -> None:
        """From now on every frame takes so much longer, each way."""
        self.cable.stdin.write(f"{seconds}\n")
        self.cable.stdin.flush()

    def accept_keys(self) -> None:
        """What a user does once."""
        self.a.run("for h in node-a node-b; do ssh-keyscan -t ed25519 $h; done >> ~/.ssh/known_hosts 2>/dev/null")

    def write_settings(self, *environment: str) -> None:
        """ssh's keepalive, and NAME=value lines for `.deepspeed_env`, both in node-a's home."""
        self.a.run("printf 'Host *\\n  ServerAliveInterval 15\\n' > ~/.ssh/config; chmod 600 ~/.ssh/config")
        lines = "".join(f"{line}\n" for line in ("OMP_NUM_THREADS=1", *environment))
        self.a.run(f"printf %s {shlex.quote(lines)} > ~/.deepspeed_env")

    def start(self, node: Node, *words: str, folder: Path = REPOSITORY, **environment: str) -> subprocess.Popen:
        """Starts a command in a folder on a host, in the environment of a fresh login with this virtual environment."""
        return node.start(
            *("bash", "-c", 'cd "$0" && exec "$@"', str(folder), *words),  # a process that enters a host begins in its root
            env={"HOME": HOME, "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def deepspeed(self, *words: str, launch: tuple[str, ...] = ()) -> subprocess.Popen:
        """The literal launch over both hosts: `deepspeed --hostfile FILE LAUNCH... WORDS...`."""
        return self.start(self.a, "deepspeed", "--hostfile", str(self.hostfile), *launch, *words)

    def finish(self, process: subprocess.Popen, limit: float = LIMIT) -> tuple[int, str]:
        """(status, output) within the limit; fails if it takes longer or anything of it is left on a host."""
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"no end within {limit} s:\n{self.rest(process)[-3000:]}")
        wait_until(lambda: not self.left(), 10)
        assert not self.left(), f"left behind: {self.left()}\n{output[-3000:]}"
        return process.returncode, output

    def rest(self, process: subprocess.Popen) -> str:
        """What a process that was killed had printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=2)[0]
        return ""

    def left(self) -> dict[str, list[int]]:
        """Processes with Python among their words, by host."""
        found = {node.name: node.pids("python") for node in (self.a, self.b)}
        return {name: pids for name, pids in found.items() if pids}


@contextlib.contextmanager
def two_hosts(folder: Path, *, debian: bool = False, slots: tuple[int, int] = (1, 1), slow: bool = False) -> Iterator[TwoHosts]:
    """Two hosts, node-a (10.77.0.1) and node-b (10.77.0.2), that know each other's names and let each other in, but have not
    accepted each other's host keys. Several pairs may live side by side.

    Args:
        folder: for their files, on a disk.
        debian: /etc/hosts has "127.0.1.1 own-name", as Debian's installer writes it.
        slots: in the hostfile.
        slow: with a cable that can be made slow (`TwoHosts.delay`).
    """
    addresses = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id")], check=True)
    processors, nodes = sorted(os.sched_getaffinity(0)), []
    half = max(1, len(processors) // 2)
    with contextlib.ExitStack() as ends:
        for name, address in addresses.items():
            own = folder / name
            for child in ("ssh", "home"):
                (own / child).mkdir(parents=True)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own / "hostkey")], check=True)
            shutil.copy(folder / "id", own / "ssh/id_ed25519")
            shutil.copy(folder / "id.pub", own / "ssh/authorized_keys")
            known = {other: "127.0.1.1" if debian and other == name else place for other, place in addresses.items()}
            lines = ["127.0.0.1 localhost", *(f"{place} {other}" for other, place in known.items())]
            (own / "hosts").write_text("\n".join(lines) + "\n")
            (own / "sshd_config").write_text(SSHD.format(folder=own))
            sshd = shutil.which("sshd", path=SYSTEM_PATH)
            script = INIT.format(name=name, folder=own, home=HOME, address=address, path=SYSTEM_PATH, sshd=sshd)
            part = ",".join(map(str, processors[:half] if not nodes else processors[-half:]))
            words = ["taskset", "-c", part, "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
            log = ends.enter_context(open(own / "init.log", "w"))
            holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
            ends.callback(end, holder)
            nodes.append(Node(name, address, own, part, holder))
        a, b = nodes
        cable = None
        if slow:
            cable = subprocess.Popen(
                [sys.executable, slow_link.__file__, str(a.init), str(b.init)], stdin=subprocess.PIPE, text=True
            )
            ends.callback(end, cable)
        else:
            names = ["name", "eth0", "netns", str(a.init), "type", "veth", "peer", "name", "eth0", "netns", str(b.init)]
            subprocess.run(["ip", "link", "add", *names], check=True, env={**os.environ, "PATH": SYSTEM_PATH})
        for node in nodes:
            ready = wait_until(lambda node=node: (node.folder / "ready").exists() or node.holder.poll() is not None, 30)
            assert ready and node.holder.poll() is None, (node.folder / "init.log").read_text()
        (folder / "hostfile").write_text("".join(f"{node.name} slots={n}\n" for node, n in zip(nodes, slots, strict=True)))
        yield TwoHosts(a, b, folder / "hostfile", cable)


def end(holder: subprocess.Popen) -> None:
    """Ends a host with everything that runs on it."""
    holder.stdin.close()
    try:
        holder.wait(10)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()
