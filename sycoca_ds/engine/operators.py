"""`python -m sycoca_ds.engine.operators`: compiles the DeepSpeed operators this project uses, before anything waits for them.

On a CPU these are the shared-memory collectives, which DeepSpeed builds when a process group starts, and the CPU Adam of
`zero3_offload`. They land in torch's extension folder (`prepare_deepspeed` says which), about 45 s each; a second run finds them
there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, one_line, run_command

STALE_SECONDS = 180.0
"""A lock in whose folder nothing has changed for so long is left over; one file compiles in about 45 s."""
COMPILE_TIME = "about 45 s, minutes on a busy machine; once, later starts find it there"


def wait_for_lock(folder: Path, stale_seconds: float = STALE_SECONDS) -> bool:
    """Waits for another build in torch's extension folder; True if its lock was left over and has been removed.

    A build that is killed leaves `lock` behind, and torch then waits for it without end and without a word.
    """
    lock, said, seen, since = folder / "lock", False, None, time.monotonic()
    while lock.exists():
        if not said:
            print(f"{folder.name} is being compiled (lock in {folder}): waiting, at most {stale_seconds:.0f} s", flush=True)
            said = True
        newest = max((_changed(path) for path in folder.iterdir()), default=0.0)
        if newest != seen:
            seen, since = newest, time.monotonic()
        # old already when it was found; or, whatever clocks say, unchanged for so long
        if time.time() - newest > stale_seconds or time.monotonic() - since > stale_seconds:
            lock.unlink(missing_ok=True)
            return True
        time.sleep(0.5)
    return False


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a compiler's temporary file, gone since it was listed
        return 0.0


def wait_for_builds() -> None:
    """`wait_for_lock` for every operator that this project uses; called before DeepSpeed loads one.

    Raises:
        UserError: one that any run loads has yet to be compiled, and cannot be here.
    """
    for _, folder in needed_operators():
        wait_for_lock(folder)
    if not all((folder / f"{builder.NAME}.so").exists() for builder, folder in needed_operators(offload=False)):
        check_tools()


def lacking(path: str | None = None) -> tuple[str, str] | None:
    """(what compiling asks for and this machine has not, what to install); None: nothing.

    Args:
        path: in place of PATH.
    """
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    there = {
        ("c++ on PATH", "g++ (Red Hat: gcc-c++)"): shutil.which("c++", path=path),
        ("ninja on PATH", "ninja, into the environment (`pip install ninja`)"): shutil.which("ninja", path=path),
        (f"{header}", "Python's headers: python3-dev (Red Hat: python3-devel)"): header.is_file(),
    }
    return next((what for what, found in there.items() if not found), None)


def check_tools() -> None:
    """Raises `UserError` for what is `lacking`."""
    if (found := lacking()) is not None:
        raise UserError(f"there is no {found[0]}: DeepSpeed compiles its operators with it; install {found[1]}")


@contextlib.contextmanager
def said_if_compiling(after: float = 2.0) -> Iterator[None]:
    """Says so, once and on one rank a machine, if an operator is being compiled for longer than `after` seconds in the block."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    over, locked = threading.Event(), {folder: 0.0 for _, folder in needed_operators()}

    def watch() -> None:
        while not over.wait(0.5):
            for folder in locked:
                locked[folder] = locked[folder] + 0.5 if (folder / "lock").exists() else 0.0
                if locked[folder] > after:
                    print(f"compiling DeepSpeed's operators into {folder}: {COMPILE_TIME}", flush=True)
                    return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def needed_operators(offload: bool = True) -> list[tuple[Any, Path]]:
    """(builder, torch's extension folder) of each operator that a run loads. `prepare_deepspeed` comes first.

    Args:
        offload: whether its policy keeps the optimizer in host memory.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder import CPUAdamBuilder
    from torch.utils.cpp_extension import _get_build_directory

    builders = [CPUAdamBuilder()] if offload else []
    if get_accelerator().device_name() == "cpu":
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        builders.append(ShareMemCommBuilder())
    return [(builder, Path(_get_build_directory(builder.NAME, verbose=False))) for builder in builders]


def build_operators() -> list[str]:
    """Builds and loads the operators; returns their names.

    Raises:
        UserError: something is `lacking`, or the compiler refused.
    """
    from sycoca_ds.engine.ranks.environment import prepare_deepspeed

    prepare_deepspeed()
    check_tools()
    operators = needed_operators()
    for builder, folder in operators:
        wait_for_lock(folder)
        if not (folder / f"{builder.NAME}.so").exists():
            print(f"compiling DeepSpeed's {builder.NAME}: {COMPILE_TIME}", flush=True)
        try:
            builder.load(verbose=False)
        except RuntimeError as error:
            said = next((line for line in str(error).splitlines() if "error:" in line), one_line(error))
            raise UserError(
                f"DeepSpeed's {builder.NAME} could not be compiled: {said.strip()[:300]}; its folder is {folder}"
            ) from None
    return [builder.NAME for builder, _ in operators]


def main() -> int:
    print("DeepSpeed operators ready:", ", ".join(build_operators()))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
