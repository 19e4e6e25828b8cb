"""Other hosts, over ssh: what it says when it does not get there, how long it waits for a silent one, and a probe that answers.

As DeepSpeed gets there, with the user's own ssh configuration, but never asking: a question that nobody sees is a wait without end.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("probe.py")
CONNECT_SECONDS = 10
QUIETLY = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ConnectionAttempts=1", "-o", "LogLevel=ERROR")
NO_FOLDER, NO_PYTHON = 91, 92

REASONS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "its host key is another one than the known one",
        "find out why (a machine installed anew?), then `ssh-keygen -R {host}` and accept the new one",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "its host key is not known",
        "compare and accept it once: `ssh {host} true`, or, in a network you trust, `ssh-keyscan {host} >> ~/.ssh/known_hosts`",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "ssh would ask for a password, or refuses the key",
        "`ssh-copy-id {host}`, and for a key with a passphrase `ssh-add`, on the machine you launch from",
    ),
    (r"Could not resolve hostname", "its name cannot be resolved", "mend the name in the hostfile, or /etc/hosts or ~/.ssh/config"),
    (r"Connection refused", "nothing listens on ssh's port", "start sshd there, or name its port in ~/.ssh/config"),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        f"it does not answer within {CONNECT_SECONDS} s",
        "is it switched on, and the address right? `ping {host}`",
    ),
    (r"rcmd", "pdsh knows no ssh", "install its ssh module (Debian: in pdsh; Red Hat: pdsh-rcmd-ssh)"),
    (r"Connection (closed|reset)", "sshd hangs up at once", "look into its log there (MaxStartups, hosts.deny, no room on disk)"),
)
"""(what ssh says, what that means, what to do)."""


def explain(host: str, said: str) -> tuple[str, str]:
    """(what is wrong, what to do) from what ssh printed."""
    for pattern, means, mend in REASONS:
        if re.search(pattern, said):
            return means, mend.format(host=host)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines[-1][:200] if lines else "ssh ends without a word"), f"try `ssh {host} true` by hand"


def keepalive(host: str) -> int:
    """Seconds after which ssh, configured as it is, asks a silent host whether it is there; 0: never."""
    appended = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    done = subprocess.run(["ssh", *appended, "-G", host], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    found = re.search(r"^serveraliveinterval (\d+)", done.stdout, re.MULTILINE)
    return int(found[1]) if found else 0


def over_pdsh(hosts: list[str], limit: float) -> dict[str, str]:
    """What went wrong on each host with pdsh, called as DeepSpeed calls it; empty: nothing."""
    quiet = " ".join([os.environ.get("PDSH_SSH_ARGS_APPEND", ""), *QUIETLY])
    environment = {**os.environ, "PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": quiet}
    words = ["pdsh", "-S", "-f", "1024", "-w", ",".join(hosts), "echo", "sycoca:%n:$((40 + 2))"]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(hosts, f"no end within {limit:.0f} s")
    answers = {}
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    for number, host in enumerate(hosts):
        if any(line.endswith(f": sycoca:{number}:42") for line in lines):
            answers[host] = ""
            continue
        labels = (f"{host}: ", f"{host.split('.')[0]}: ")  # pdsh leaves out a domain that all of them have
        said = [line.partition(": ")[2] for line in lines if line.startswith(labels)]
        answers[host] = (said or lines or ["it printed nothing"])[0]
    return answers


class Session:
    """A probe on a host, started as DeepSpeed starts a rank: in the folder, by the Python, with the variables of the launch.

    Attributes:
        failed: None, or (what is wrong, what to do).
        noise: what the login there printed before the probe did.
    """

    def __init__(self, host: str, folder: Path, exports: Mapping[str, str], limit: float):
        self.host, self.noise = host, ""
        self.failed: tuple[str, str] | None = None
        text = PROBE.read_bytes()
        begin = f"import sys; exec(compile(sys.stdin.buffer.read({len(text)}).decode(), 'probe', 'exec'))"
        place, python = shlex.quote(str(folder)), shlex.quote(sys.executable)
        remote = "".join(f"export {name}={double_quoted(value)}; " for name, value in exports.items()) + (
            f"cd {place} || exit {NO_FOLDER}; [ -x {python} ] || exit {NO_PYTHON}; exec {python} -c {shlex.quote(begin)}"
        )
        self.process = subprocess.Popen(
            ["ssh", *QUIETLY, *shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", "")), host, remote],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # without a terminal nothing can ask on it
        )
        self.lines: queue.Queue[bytes | None] = queue.Queue()
        self.errors: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self.listener = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.listener.start()
        self._send(text)
        until = time.monotonic() + limit
        while self.failed is None:
            line = self._next(until)
            if line is None:
                self._explain(folder)
            elif line.startswith(b'{"ready": '):
                break
            else:
                self.noise += line.decode(errors="replace")

    def ask(self, do: str, within: float = 60.0, **question: Any) -> Any:
        """The probe's answer; None if it gives none, and `failed` then says why."""
        if self.failed is not None:
            return None
        self._send(json.dumps({"do": do, **question}).encode() + b"\n")
        line = self._next(time.monotonic() + within)
        if line is None:
            self.failed = (
                f"no answer to {do!r} within {within:.0f} s",
                "the host hangs, or the connection is lost: try it by hand",
            )
            return None
        answer = json.loads(line)
        if "error" in answer:
            raise ProbeError(f"{do}: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        """Ends the probe, which takes its files with it."""
        try:
            self.process.stdin.close()
            self.process.wait(10 if self.failed is None else 0.1)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()

    def _send(self, data: bytes) -> None:
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except OSError:
            pass  # ssh has ended: reading says so, and why

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _next(self, until: float) -> bytes | None:
        try:
            return self.lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def _explain(self, folder: Path) -> None:
        """Why there is no probe: the host cannot be reached, or lacks what the launch needs, or its login waits for something."""
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.failed = ("its login ends in no shell in time", f"try `ssh {self.host} true`: what do its login files wait for?")
            return
        self.listener.join(5)
        if status == NO_FOLDER:
            self.failed = (
                f"the folder {folder} is not there, in which the ranks would start",
                "launch from a folder of a file system that all hosts have",
            )
        elif status == NO_PYTHON:
            self.failed = (
                f"{sys.executable} is not there, with which the ranks would start",
                "install the environment at the same path on every host, or on a file system that all have",
            )
        else:
            self.failed = explain(self.host, b"".join(self.errors).decode(errors="replace"))


class ProbeError(Exception):
    """The probe was asked for something that failed on its host."""


def double_quoted(value: str) -> str:
    """As DeepSpeed writes a value into the remote command."""
    return f'"{value}"' if re.search(r"[^\w@%+=:,./-]", value) else value
