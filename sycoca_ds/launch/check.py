"""`python -m sycoca_ds.launch check`: what would stop a launch on several hosts, found before it.

All hosts are asked side by side and every question is bounded in time: a host that hangs costs its limit once. What the answers
mean is decided in judgement.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.launch import hostfile, judgement, shell
from sycoca_ds.launch.findings import HERE, Finding, not_checked, table, things_to_do
from sycoca_ds.launch.hostfile import Host
from sycoca_ds.launch.probe import first_line
from sycoca_ds.launch.processes import REPOSITORY
from sycoca_ds.launch.shell import ProbeError, Session, explain

CODE = ("sycoca_ds", "data_pipeline", "ds_configs")
LOGIN_SECONDS = 45.0
"""For a login and the start of Python, both on a file system that may be slow."""
CONNECT_SECONDS = 5.0
CLOCK_QUESTIONS = 3
FILES_OF_A_HOST = 8
"""That are open at once at most: the pipes of its session, of which both ends while it starts."""
WRONG_LINES = 5
"""Of a hostfile that are shown at most: another file given by mistake has hundreds."""
WIDTH = 132
"""Of the table where the output is no terminal."""


@dataclass(frozen=True)
class CheckCommand:
    """Looks on every host of a hostfile for what would stop a launch, or make it hang: a table of hosts and checks, and what to do
    about each red one. Status 1 if one is red."""

    hostfile: Path
    """The file that `deepspeed --hostfile` will be given."""
    data: tuple[str, ...] = ()
    """Data set folders of the run, as --data.train will name them. URLs are not looked at."""
    out: str = "."
    """Run folder, as --run.out will name it; it need not exist yet. Default: the current folder, where runs/ is made."""
    ds_config: str = "ds_configs/zero3.json"
    """DeepSpeed policy, as --run.ds-config will name it: it decides which operators are needed."""
    master_addr: str = ""
    """As `deepspeed --master_addr`; default: what DeepSpeed would take, the first host's first address."""
    master_port: int = 29500
    """As `deepspeed --master_port`."""
    disk_gib: float = 60.0
    """Room wanted for saves, GiB. 60: four of the 930M model, 11.3 GB each (13.1 GB under ZeRO-1 and 2), three that are kept and
    one being written; for another model `python -m sycoca_ds.capacity` says the size."""
    limit: float = 120.0
    """Seconds in which a host must have imported torch and DeepSpeed."""
    json: bool = False
    """Print everything that was found as JSON."""

    def run(self) -> int:
        hostfile.check_port(self.master_port)
        hosts, problems = hostfile.read_hostfile(self.hostfile)
        for program, package in (("ssh", "openssh-client"), ("pdsh", "pdsh")):
            if shutil.which(program) is None:
                raise UserError(f"{program} was not found on PATH: `deepspeed --hostfile` starts with it; install {package}")
        allow_open_files(64 + FILES_OF_A_HOST * len(hosts))
        check = Check(self, {host.name: host for host in hosts})
        check.found += [Finding(HERE, "hostfile", "fail", said, mend) for said, mend in problems[:WRONG_LINES]]
        if (more := len(problems) - WRONG_LINES) > 0:
            said = f"{more} more of {self.hostfile}'s lines are wrong"
            check.found.append(Finding(HERE, "hostfile", "fail", said, "see that it is the hostfile"))
        if not self.json:
            print(
                f"asking {len(hosts)} hosts; on each torch and DeepSpeed are imported: seconds to a minute",
                file=sys.stderr,
                flush=True,
            )
        check.look()
        failed = any(finding.state == "fail" for finding in check.found)
        if self.json:
            print(json.dumps(check.record(), indent=2))
        else:
            print(check.text())
        return int(failed)


@dataclass
class Check:
    """One run of the checks."""

    asked: CheckCommand
    hosts: dict[str, Host]
    found: list[Finding] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    master: str = ""
    """MASTER_ADDR of the launch."""
    exports: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """Where rank 0 will run."""
        return next(iter(self.hosts), "")

    def look(self) -> None:
        folder = Path.cwd()
        if len(self.hosts) > 1:  # one host is started without a shell
            self.found += [Finding(HERE, "folder", "fail", said, mend) for said, mend in hostfile.unquoted()]
        self.exports = hostfile.exports(os.environ, folder, self._environment(folder))
        if not any(finding.check == "hostfile" for finding in self.found):
            self.found.append(Finding(HERE, "hostfile", "ok"))
        if not self.hosts:
            return
        with ThreadPoolExecutor(len(self.hosts) + 1) as pool:
            try:
                over_pdsh = pool.submit(shell.over_pdsh, list(self.hosts), LOGIN_SECONDS)
                opened = pool.map(lambda host: Session(host, folder, self.exports, LOGIN_SECONDS), self.hosts)
                self.sessions = dict(zip(self.hosts, opened, strict=True))
                self._keepalive()
                self._ask(pool)
                for host, problem in over_pdsh.result().items():
                    self._pdsh(host, problem)
                self.found += list(not_checked(self.found, list(self.hosts), self.answers))
            finally:
                for session in self.sessions.values():
                    session.close()

    def _environment(self, folder: Path) -> dict[str, str]:
        """The variables of `.deepspeed_env`, here and in the home, with their faults found."""
        variables: dict[str, str] = {}
        problems = []
        for path in hostfile.environment_files(folder):
            own, wrong = hostfile.read_environment(path)
            variables |= own
            problems += wrong
        self.found += [Finding(HERE, "env", "fail", said, mend) for said, mend in problems]
        if not problems:
            self.found.append(Finding(HERE, "env", "ok"))
        return variables

    def _keepalive(self) -> None:
        for host in (host for host, session in self.sessions.items() if session.failed is None):
            if shell.keepalive(host):
                self.found.append(Finding(host, "keepalive", "ok"))
            else:
                self.found.append(
                    Finding(
                        host,
                        "keepalive",
                        "fail",
                        "ssh never asks whether a silent host is still there: `deepspeed` would wait for it for hours",
                        "write `Host *` and below it `  ServerAliveInterval 15` into ~/.ssh/config, or "
                        "`export PDSH_SSH_ARGS_APPEND='-o ServerAliveInterval=15'` before the launch",
                    )
                )

    def _pdsh(self, host: str, problem: str) -> None:
        if not problem:
            self.found.append(Finding(host, "pdsh", "ok"))
        elif self.sessions[host].failed is None:  # else that is why
            self.found.append(Finding(host, "pdsh", "fail", *explain(host, problem)))

    def _all(self, pool: ThreadPoolExecutor, check: str, question: Callable[[str, Session], Any]) -> dict[str, Any]:
        """The answers of all hosts that give one, side by side; what goes wrong becomes a finding under `check`."""

        def ask(host: str) -> Any:
            try:
                return question(host, self.sessions[host])
            except ProbeError as error:
                return error

        living = [host for host, session in self.sessions.items() if session.failed is None]
        answers = dict(zip(living, pool.map(ask, living), strict=True))
        for host, answer in answers.items():
            if isinstance(answer, ProbeError):
                self.found.append(Finding(host, check, "fail", str(answer), "look at it there by hand"))
        return {
            host: answer
            for host, answer in answers.items()
            if not isinstance(answer, ProbeError) and self.sessions[host].failed is None
        }

    def _ask(self, pool: ThreadPoolExecutor) -> None:
        asked = self.asked
        known = self._all(pool, "ssh", lambda _, s: s.ask("facts", root=str(REPOSITORY), parts=CODE, out=asked.out))
        question = {"ds_config": asked.ds_config, "data": [folder for folder in asked.data if "://" not in folder]}
        looks = self._all(
            pool,
            "python",
            lambda _, s: s.ask("surroundings", asked.limit + 10, root=str(REPOSITORY), limit=asked.limit, **question),
        )
        self.answers = {host: {**facts, "look": looks[host]} for host, facts in known.items() if host in looks}
        self._one_host()
        self.found += judgement.same_machine(self.answers)
        self.found += judgement.own_names(self.answers, self.exports)
        self._addresses(pool)
        for part in (judgement.code, judgement.python, judgement.operators, judgement.data):
            self.found += part(self.answers)
        self.found += judgement.gpus(self.answers, self.hosts)
        self._folder(pool)
        self.found += judgement.room(self.answers, self.hosts, asked.disk_gib)
        self.found += judgement.clocks(self._all(pool, "clock", lambda _, s: clock_offset(s)))
        for host, session in self.sessions.items():
            if session.failed is not None:
                self.found.append(Finding(host, "ssh", "fail", *session.failed))
            elif session.noise:
                text = f"its login prints {session.noise.strip()[:60]!r} unasked"
                mend = "let the login files there print on a terminal only: `[ -t 1 ] && ...`"
                if host == self.first and not asked.master_addr:
                    text += ", whose first word DeepSpeed would take for MASTER_ADDR"
                self.found.append(Finding(host, "ssh", "fail" if host == self.first else "warn", text, mend))
            else:
                self.found.append(Finding(host, "ssh", "ok"))

    def _one_host(self) -> None:
        here = (first_line("/proc/sys/kernel/random/boot_id"), socket.gethostname())
        if len(self.hosts) == 1 and self.first in self.answers:
            facts = self.answers[self.first]
            if (facts["boot"], facts["host"]) != here:
                text = "a hostfile of one host: DeepSpeed starts the ranks on this machine, not there"
                self.found.append(Finding(self.first, "hostfile", "fail", text, "launch it there, or with --force_multi"))

    def _addresses(self, pool: ThreadPoolExecutor) -> None:
        """Is rank 0's port free, do all hosts reach it at the address that DeepSpeed takes, and each the next one on any port?"""
        asked, token = self.asked, secrets.token_hex(8)
        if len(self.answers) < 1 or self.first not in self.answers:
            return
        addresses = self.answers[self.first]["addresses"]
        self.master = asked.master_addr or (addresses[0] if addresses else "")
        if not self.master:
            mend = "give its address to the launch: `deepspeed --master_addr ADDRESS`"
            self.found.append(Finding(self.first, "master", "fail", "`hostname -I` there gives no address", mend))
            return
        closed, opening = False, "open all ports between the hosts of a launch: ranks talk on any"
        port, problem = self.sessions[self.first].ask("listen", port=asked.master_port, token=token) or (0, "no answer")
        if problem:
            mend = "end what listens there (`ss -ltnp`), or launch with another --master_port"
            self.found.append(Finding(self.first, "master", "fail", f"port {asked.master_port} cannot be had: {problem}", mend))
        else:
            others = {host: self.answers[host] for host in self.answers if host != self.first}
            reached = self._connect(pool, others, {host: (self.master, port) for host in others}, token)
            if not any(reached.values()):
                self.found.append(Finding(self.first, "master", "ok"))
            for host, problem in reached.items():
                if not problem:
                    self.found.append(Finding(host, "master", "ok"))
                    continue
                better = self._better_address(addresses, port, token, host)
                text = f"does not reach rank 0 at {self.master}:{port} ({problem})"
                mend, closed = f"launch with --master_addr {better}" if better else opening, closed or not better
                self.found.append(Finding(host, "master", "fail", text, mend))
        ports = self._all(pool, "reach", lambda _, s: (s.ask("listen", port=0, token=token) or (0, ""))[0])
        ring = [host for host in self.answers if ports.get(host)]
        targets = {host: (self._address(after), ports[after]) for host, after in zip(ring, ring[1:] + ring[:1], strict=True)}
        if len(ring) > 1:
            for host, problem in self._connect(pool, {host: self.answers[host] for host in ring}, targets, token).items():
                after, (address, port) = ring[(ring.index(host) + 1) % len(ring)], targets[host]
                if not problem:
                    self.found.append(Finding(host, "reach", "ok"))
                elif closed:
                    self.found.append(
                        Finding(host, "reach", "skip", "does not reach the next host, for which master says what to do")
                    )
                else:
                    text = f"does not reach {after} at {address}:{port} ({problem})"
                    self.found.append(Finding(host, "reach", "fail", text, opening))

    def _connect(
        self, pool: ThreadPoolExecutor, hosts: Mapping[str, Any], targets: Mapping[str, tuple[str, int]], token: str
    ) -> dict[str, str]:
        def one(host: str, session: Session) -> str:
            if host not in hosts:
                return ""
            address, port = targets[host]
            return session.ask("connect", address=address, port=port, token=token, limit=CONNECT_SECONDS)

        answers = self._all(pool, "reach", one)
        return {host: answers[host] for host in hosts if host in answers}

    def _better_address(self, addresses: list[str], port: int, token: str, host: str) -> str:
        for address in addresses:
            question = {"address": address, "port": port, "token": token, "limit": CONNECT_SECONDS}
            if address != self.master and self.sessions[host].ask("connect", **question) == "":
                return address
        return ""

    def _address(self, host: str) -> str:
        """Where the ranks of a host listen, as gloo chooses it; a loopback address is found under `name` already."""
        facts, chosen = self.answers[host], self.exports.get("GLOO_SOCKET_IFNAME", "")
        own = facts["own_name"] if not facts["own_name"].startswith(("127.", "::1")) else ""
        return facts["interfaces"].get(chosen) or own or (facts["addresses"] or [host])[0]

    def _folder(self, pool: ThreadPoolExecutor) -> None:
        """Every host writes a file into the run folder, or where that will be made; the first host reads all, all read its own."""
        if self.first not in self.answers:
            return
        folder, token = self.answers[self.first]["folder"], secrets.token_hex(6)
        paths = {host: f"{folder}/.launch_check_{token}_{number}" for number, host in enumerate(self.answers)}
        mend = "all ranks save into one folder: give --run.out on a file system that every host has at that path"
        there = {host for host, facts in self.answers.items() if facts["folder"] == folder}
        for host in self.answers.keys() - there:
            self.found.append(Finding(host, "folder", "fail", f"{folder} is not there", mend))

        def write(host: str, session: Session) -> str:
            return session.ask("write", path=paths[host], text=f"{token} {host}") if host in there else ""

        wrote = self._all(pool, "folder", write)
        for host, problem in wrote.items():
            if problem:
                self.found.append(
                    Finding(
                        host, "folder", "fail", f"{folder} cannot be written: {problem}", "give the user of the launch the right"
                    )
                )
        whole = [host for host in self.answers if host in there and wrote.get(host) == ""]
        if self.first not in whole:
            return

        def read(host: str, session: Session) -> list[str | None]:
            wanted = whole if host == self.first else [self.first]
            return session.ask("read", 90.0, paths=[paths[other] for other in wanted]) if host in whole else []

        seen = self._all(pool, "folder", read)
        for number, host in enumerate(whole):
            both = seen.get(host) == [f"{token} {self.first}"] or host == self.first
            if both and seen.get(self.first, [None] * len(whole))[number] == f"{token} {host}":
                self.found.append(Finding(host, "folder", "ok"))
            else:
                text = f"{folder} is another one than on {self.first}: a file written on one does not appear on the other"
                self.found.append(Finding(host, "folder", "fail", text, mend))

    def text(self) -> str:
        """The table, what to do, and what the hosts are."""
        colour = sys.stdout.isatty()
        width = shutil.get_terminal_size((WIDTH, 24)).columns
        to_do, red = things_to_do(self.found, colour)
        lines = [table(self.found, list(self.hosts), width=width, colour=colour), "", *to_do]
        kinds: dict[str, list[str]] = {}
        for host, facts in self.answers.items():
            versions = facts["look"].get("installed", {})
            cards = f"{len(facts['gpus'])} x {facts['gpus'][0][0]}" if facts["gpus"] else "no GPU"
            parts = [
                f"Python {facts['python']}",
                *[f"{name} {versions[name]}" for name in ("torch", "deepspeed") if versions],
                cards,
            ]
            kinds.setdefault(", ".join([*parts, f"{facts['cores']} cores", facts["revision"] or "no git"]), []).append(host)
        lines += [f"{', '.join(hosts)}: {kind}" for kind, hosts in kinds.items()]
        ranks = sum(host.slots for host in self.hosts.values())
        lines.append(
            f"{red} red"
            if red
            else f"nothing red: {ranks} ranks on {len(self.hosts)} hosts, MASTER_ADDR {self.master}:{self.asked.master_port}"
        )
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything, for a program."""
        return {
            "ok": not any(finding.state == "fail" for finding in self.found),
            "world_size": sum(host.slots for host in self.hosts.values()),
            "master_addr": self.master,
            "master_port": self.asked.master_port,
            "findings": [dataclasses.asdict(finding) for finding in self.found],
            "hosts": {
                host: {"slots": self.hosts[host].slots, **{name: value for name, value in facts.items() if name != "code"}}
                for host, facts in self.answers.items()
            },
        }


def allow_open_files(count: int) -> None:
    """Lets this process have so many files open; by default it is 1024, too few for some hundred hosts side by side.

    Raises:
        UserError: the system does not let it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise UserError(f"{count} open files are needed to ask all hosts side by side, and `ulimit -Hn` is {hard}: raise that")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def clock_offset(session: Session) -> tuple[float, float] | None:
    """(seconds by which the host's clock is ahead of ours, doubt): of several questions the one answered fastest."""
    import time

    best = None
    for _ in range(CLOCK_QUESTIONS):
        before = time.time()
        there = session.ask("now", 10.0)
        after = time.time()
        if there is not None and (best is None or after - before < best[1]):
            best = (there - (before + after) / 2, after - before)
    return best
