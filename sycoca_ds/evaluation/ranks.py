"""The processes of an evaluation: one alone, or those that deepspeed, torchrun or Slurm have started."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from data_pipeline.errors import UserError, in_the_environment, one_line, run_command
from sycoca_ds.evaluation.options import choose_device

FIRST_WORD_SECONDS = 15.0
"""For which other ranks leave rank 0 the time to say what is wrong; a launcher ends them as soon as it has."""


def join_ranks(device: str):
    """(`Team`, `torch.device`) of this process: alone, or one of those that a launcher has started."""
    from sycoca_ds.eval.runner.team import Team

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(), choose_device(device)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: every rank takes a device of its own here; expected auto, cpu or cuda")
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    from sycoca_ds.engine.ranks.environment import prepare_deepspeed
    from sycoca_ds.engine.ranks.runtime import start_runtime

    prepare_deepspeed()
    as_alone = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    runtime = start_runtime()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = as_alone  # training may be coarser
    if device == "cuda" and runtime.device.type != "cuda":
        raise UserError(f"--device cuda: torch {torch.__version__} finds none on this machine; use --device auto")
    if not runtime.leads:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # it holds nothing, and a wait for rank 0 hears no Ctrl-C
    return Team(runtime.rank, runtime.world_size), runtime.device


def run_on_every_rank(command: Callable[[], int]) -> int:
    """The command's exit status. Started as one of several ranks, this process ends here, and only rank 0 says what is wrong with
    everybody."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run_command(command)
    from sycoca_ds.engine.ranks.output import never_fatal
    from sycoca_ds.train import end_process

    never_fatal()
    rank = int(os.environ["RANK"])
    if rank > 0:
        sys.stdout = open(os.devnull, "w")

    def guarded() -> int:
        try:
            status = in_the_environment(command)
        except UserError:  # all ranks find the same one, or rank 0 was told
            if rank == 0:
                raise
            time.sleep(FIRST_WORD_SECONDS)
            return 2
        except Exception as error:
            if rank == 0:
                traceback.print_exc()
            else:  # it may be this rank's alone; rank 0's traceback says more where it is not
                print(f"rank {rank}: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
            return 1
        leave()
        return status

    end_process(run_command(guarded))


def leave() -> None:
    """Ends the process group, if one was made, when every rank is here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
