"""Pretrains a model: `deepspeed --hostfile hostfiles/a100x16 sycoca_ds/train.py --data.train DIR`.

Without arguments this means the 930M preset under ds_configs/zero3.json. The same command resumes a run from its newest
checkpoint. Options: `--preset tiny|small|base|930m`, `--config RUN/config.json`, `--section.field VALUE`; `--help` lists all.
`--task caption` and `--task vqa` fine-tune what a pretraining has left (docs/finetuning.md).
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
import time
import traceback
from pathlib import Path

# Launched by path, Python puts this folder first on the module path, where `config` or `data` would answer for anything of
# that name. The repository's root belongs there; not the folder of all packages, which would go before Python's own.
ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0]).resolve() == ROOT / "sycoca_ds":
    sys.path[:1] = [] if ROOT.name in ("site-packages", "dist-packages") else [str(ROOT)]

from data_pipeline.errors import UserError, in_the_environment, run_command  # noqa: E402

FIRST_WORD_SECONDS = 15.0
"""For which other ranks leave rank 0 the time to say what is wrong; a launcher ends them as soon as it has."""
EXIT_PREEMPTED = 75
"""Exit status after SIGTERM or SIGUSR1: saved, not finished; start the same command again (EX_TEMPFAIL)."""


def main() -> int:
    from sycoca_ds.engine.ranks.output import never_fatal
    from sycoca_ds.options import parse_options

    never_fatal()
    faulthandler.enable()  # a crash in native code leaves the lines of Python that led there
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    config = parse_options(sys.argv[1:])
    # Only now torch and DeepSpeed, which take seconds and talk of accelerators: --help and a misspelt option need neither.
    from sycoca_ds.engine.loop import train
    from sycoca_ds.engine.preparation import check_before_start
    from sycoca_ds.engine.ranks.environment import prepare_deepspeed
    from sycoca_ds.engine.ranks.runtime import start_runtime
    from sycoca_ds.engine.safety.status import mark_failed

    prepare_deepspeed()
    check_before_start(config)
    runtime = start_runtime()
    try:
        ended = train(config, runtime)
    except Exception:
        if runtime.leads:
            mark_failed(Path(config.run.out))
        raise
    runtime.leave()
    return EXIT_PREEMPTED if ended == "preempted" else 0


def on_every_rank() -> int:
    """`main`, with errors of the user printed by rank 0 alone: all ranks find the same one."""
    try:
        return in_the_environment(main)
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0:
            raise
        # another machine, which may have an error of its own
        if os.environ.get("LOCAL_RANK") == "0" and not getattr(error, "said_by_rank_0", False):
            print(f"rank {rank}: {error}", file=sys.stderr)
        time.sleep(FIRST_WORD_SECONDS)  # a launcher ends all ranks when the first one is gone, rank 0 in the middle of its sentence
        return 2
    except Exception:
        # not left to the interpreter, which first waits for every thread: the others sit in a collective until this one is gone
        traceback.print_exc()
        return 1


def end_process(status: int) -> None:
    """Ends the process with its exit handlers run and its output written, but without taking the interpreter apart.

    DeepSpeed keeps process groups past their end. A gloo thread that lets go of a tensor while the interpreter goes down aborts
    the process (pytorch issue 190489), and the launcher would report a finished run as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end_process(run_command(on_every_rank))
