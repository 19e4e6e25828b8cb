"""Faults done to a training, one after another and each once, by a schedule that a seed makes.

`script` writes a train.py that reads the schedule; on the rank, in the phase and at the step that a fault names (or the next one
after a restart) it is done to that rank's process, and a file with its name says so. What every rank was fed is noted beside.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sycoca_ds.engine.safety.status import ATTEMPT_VARIABLE
from tests.worlds import REPOSITORY
from tests.worlds.processes.watching import descendants

SKIPS = 3
"""--run.max-skipped-steps of these runs."""
PHASES = ("data", "step", "save")


@dataclass(frozen=True)
class Fault:
    name: str
    kind: str
    rank: int
    phase: str
    """In which it is done: of a step's middle, or the begin of waiting for data, or of a save."""
    step: int
    """The first step at which it may be."""


@dataclass(frozen=True)
class Kind:
    ends: str
    """Class of the verdict that it should have; "" if the training should go on."""
    do: Callable[[Injector], None]
    phases: tuple[str, ...] = PHASES
    needs: str = ""
    """"disk": the run on a file system of its own; "group": a memory control group. Both need to be root."""
    checkpoints: int = 0
    """How many there must be: until then it is put off to a later step."""


class Injector:
    """In a rank: waits for the rank's faults."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rank = folder, int(os.environ.get("RANK", "0"))
        given = json.loads((folder / "schedule.json").read_text())
        self.run, self.group = Path(given["run"]), given["group"]
        self.faults = [Fault(**fault) for fault in given["faults"]]
        self.step, self.phase, self.nan_until, self.flip = 0, "start", 0, False
        self.undo: list[Callable[[], object]] = []

    def at(self, phase: str) -> None:
        """Does the next fault if it is this rank's, this phase's, and due."""
        self.phase = phase
        if phase == "data":  # the next step after a fault in a save
            while self.undo:
                self.undo.pop()()
        fault = next((fault for fault in self.faults if not (self.folder / "done" / fault.name).exists()), None)
        if fault is None or (fault.rank, fault.phase) != (self.rank, phase) or self.step < fault.step:
            return
        if len(self.checkpoints()) < KINDS[fault.kind].checkpoints:  # one may be on its way to the disk, or found no room there
            return
        about = {"step": self.step, "attempt": os.environ.get(ATTEMPT_VARIABLE, ""), "at": time.monotonic()}
        (self.folder / "done" / f".{fault.name}").write_text(json.dumps(about))
        os.rename(self.folder / "done" / f".{fault.name}", self.folder / "done" / fault.name)
        print(f"fault {fault.name} on rank {self.rank} in {phase} of step {self.step}", flush=True)
        KINDS[fault.kind].do(self)

    def checkpoints(self) -> list[Path]:
        from sycoca_ds.engine.checkpoint.seal import sealed

        return sealed(self.run / "checkpoints")

    def install(self) -> None:
        """Puts itself where a training comes by."""
        from sycoca_ds.engine.checkpoint import saving
        from sycoca_ds.engine.safety.guard import Guard
        from sycoca_ds.engine.safety.watchdog import Watchdog
        from sycoca_ds.model.sycoca import SyCoCa

        enter, forward, begin, write = Watchdog.enter, SyCoCa._train, Guard.__init__, saving.Writing.__init__
        keys = open(self.folder / f"keys_{self.rank}.jsonl", "a")

        def entered(watchdog: Watchdog, phase: str, step: int) -> None:
            enter(watchdog, phase, step)
            self.step = step
            if phase in ("data", "save"):
                self.at(phase)

        def trained(model: SyCoCa, **inputs: Any) -> dict[str, Any]:
            report = forward(model, **inputs)
            keys.write(json.dumps([self.step, inputs["key_B"].tolist()]) + "\n")
            keys.flush()
            self.at("step")
            if self.step <= self.nan_until:
                report = {**report, "loss": report["loss"] * float("nan")}
            return report

        def began(guard: Guard, session: Any) -> None:
            largest = max(session.engine.module.parameters(), key=lambda parameter: parameter.numel())
            largest.register_hook(self._flipped)  # before the guard's own, which measures what a device made
            begin(guard, session)

        def writing(own: Any, *arguments: Any) -> None:
            write(own, *arguments)
            self.writer = own
            self.at("writing")

        Watchdog.enter, SyCoCa._train, Guard.__init__, saving.Writing.__init__ = entered, trained, began, writing

    def _flipped(self, slope):
        """One bit of a number of a gradient, the highest of its exponent: of the largest below 2, above which that bit is set, and
        flipped takes the number away, which no norm shows."""
        if not self.flip:
            return None
        import torch

        self.flip, wrong = False, slope.detach().clone().contiguous()
        bits = wrong.view(torch.int32).view(-1)
        sizes = wrong.abs().view(-1)
        place = sizes.masked_fill(sizes >= 2, -1).argmax()
        bits[place] ^= 1 << 30
        return wrong


def script(folder: Path) -> Path:
    """train.py with the faults of `folder`'s schedule."""
    path = folder / "faulty_train.py"
    path.write_text(
        f"import sys\nfrom pathlib import Path\nsys.path[0] = {str(REPOSITORY)!r}\n"
        "from tests.worlds.trainings.faults import Injector\n"
        f"from sycoca_ds.train import end_process, on_every_rank, run_command\nInjector(Path({str(folder)!r})).install()\n"
        "end_process(run_command(on_every_rank))\n"
    )
    return path


def schedule(folder: Path, run: Path, faults: list[Fault], group: str = "") -> None:
    (folder / "done").mkdir(parents=True, exist_ok=True)
    values = {"run": str(run), "group": group, "faults": [asdict(fault) for fault in faults]}
    (folder / "schedule.json").write_text(json.dumps(values, indent=1))


def draw(kinds: list[str], ranks: int, first: int, apart: int, seed: int) -> list[Fault]:
    """One fault of each kind, in the order given, at steps some `apart`, on drawn ranks and in drawn phases."""
    drawn, step, faults = random.Random(seed), first, []
    for number, kind in enumerate(kinds):
        faults.append(Fault(f"{number:03d}_{kind}", kind, drawn.randrange(ranks), drawn.choice(KINDS[kind].phases), step))
        step += drawn.randint(apart - apart // 2, apart + apart // 2)
    return faults


def done(folder: Path) -> dict[str, dict[str, Any]]:
    """Fault's name -> step and attempt in which it was done, and when."""
    return {path.name: json.loads(path.read_text()) for path in sorted((folder / "done").glob("[0-9]*"))}


def attempt_of(about: dict[str, Any]) -> int:
    """Number of the supervisor's attempt in which a fault was done."""
    return int(about["attempt"].rstrip(".").rpartition(".")[2])


def fed(folder: Path, ranks: int) -> dict[tuple[int, int], list[int]]:
    """(step, rank) -> keys of the samples that it was fed; of a step that was done again the last time counts."""
    found = {}
    for rank in range(ranks):
        for line in (folder / f"keys_{rank}.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):  # killed in the middle of a line
                step, keys = json.loads(line)
                found[step, rank] = keys
    return found


# ---- what is done -------------------------------------------------------------------------------------------------------------


def send(number: int) -> Callable[[Injector], None]:
    return lambda injector: os.kill(os.getpid(), number)


def raise_(injector: Injector) -> None:
    raise LookupError("an exception that nobody expects")


def crash(injector: Injector) -> None:
    ctypes.string_at(0)


def run_out_of_memory(injector: Injector) -> None:
    """In a control group of its own with little memory: the kernel kills for it."""
    (Path(injector.group) / "cgroup.procs").write_text(str(os.getpid()))
    bytearray(1 << 30)


def not_a_number(injector: Injector) -> None:
    injector.nan_until = injector.step + SKIPS


def flip_in_gradient(injector: Injector) -> None:
    injector.flip = True


def fill_disk(injector: Injector) -> None:
    balloon = injector.run / "balloon"
    injector.undo.append(lambda: balloon.unlink(missing_ok=True))
    with open(balloon, "wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(injector.run).free - (1 << 16)))


def read_only(injector: Injector) -> None:
    folder = injector.run / "checkpoints"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    injector.undo.append(lambda: subprocess.run(["umount", "-l", str(folder)], check=True))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def workers() -> list[int]:
    """The loader processes of this rank: forks of it, so they have its words."""
    own = Path("/proc/self/cmdline").read_bytes()
    found = [pid for pid in descendants(os.getpid()) if _words(pid) == own]
    assert found, "the run has no loader workers"
    return found


def _words(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def send_worker(number: int) -> Callable[[Injector], None]:
    return lambda injector: os.kill(min(workers()), number)


def kill_before_seal(injector: Injector) -> None:
    """Its writer first, before it has told rank 0's that its part is written: that one waits, its files whole, and cannot seal."""
    injector.writer._process.kill()
    deadline = time.monotonic() + 5
    while injector.rank and time.monotonic() < deadline and not list(injector.writer.folder.glob(".written_by_rank_00000*")):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_writer(injector: Injector) -> None:
    injector.writer._process.kill()


def damage(how: Callable[[Path], None]) -> Callable[[Injector], None]:
    """The newest checkpoint, then the rank."""

    def do(injector: Injector) -> None:
        how(injector.checkpoints()[0])
        os.kill(os.getpid(), signal.SIGKILL)

    return do


def largest(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.suffix == ".pt"), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def flip_bit(folder: Path) -> None:
    with open(largest(folder), "r+b") as file:
        file.seek(largest(folder).stat().st_size // 3)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 8]))


def set_clock(injector: Injector) -> None:
    """Of this process alone: the machine is not ours. An hour back, or a day on."""
    plain, change = time.time, random.Random(injector.step).choice((-3600.0, 86400.0))
    time.time = lambda: plain() + change


KINDS = {
    "sigterm": Kind("preempted", send(signal.SIGTERM)),
    "sigusr1": Kind("preempted", send(signal.SIGUSR1)),
    "sigkill": Kind("killed", send(signal.SIGKILL)),
    "sigstop": Kind("hang", send(signal.SIGSTOP)),
    "sigsegv": Kind("error", crash),
    "exception": Kind("error", raise_),
    "oom_kill": Kind("out of memory", run_out_of_memory, needs="group"),
    "nan_loss": Kind("diverged", not_a_number, ("data",)),
    "flipped_gradient": Kind("", flip_in_gradient, ("data",)),
    "full_disk": Kind("", fill_disk, ("save", "writing"), needs="disk"),
    "read_only": Kind("", read_only, ("save",), needs="disk"),
    "dead_worker": Kind("killed", send_worker(signal.SIGKILL), ("data", "step")),
    "hung_worker": Kind("hang", send_worker(signal.SIGSTOP), ("data", "step")),
    "kill_before_seal": Kind("killed", kill_before_seal, ("writing",)),
    "dead_writer": Kind("", kill_writer, ("writing",)),
    "truncated_shard": Kind("killed", damage(truncate), ("step",), checkpoints=2),
    "flipped_bit": Kind("killed", damage(flip_bit), ("step",), checkpoints=2),
    "empty_seal": Kind("killed", damage(lambda folder: (folder / "state.json").write_text("")), ("step",), checkpoints=2),
    "missing_seal": Kind("killed", damage(lambda folder: (folder / "state.json").unlink()), ("step",), checkpoints=2),
    "clock_jump": Kind("", set_clock, ("data", "step")),
}
