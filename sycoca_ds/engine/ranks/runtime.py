"""The process's place in the job: rank, device, collectives of small Python values."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.errors import UserError
from sycoca_ds.engine.operators import said_if_compiling, wait_for_builds
from sycoca_ds.engine.ranks.meeting import meet

GROUP_TIMEOUT = timedelta(minutes=30)
"""Longest wait in a collective; a save of a large model to a slow disk happens between two of them."""


@dataclass(frozen=True)
class Runtime:
    """Rank 0 decides, all follow: see `agree`."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    local_world_size: int
    """Ranks on this machine."""
    hosts: tuple[str, ...] = ()
    """The machine of every rank, by its own name."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        if self.leads:
            print(text, flush=True)

    def agree(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values / self.world_size

    def any_rank(self, *flags: bool) -> list[bool]:
        """Which flags are set on some rank."""
        return [share > 0 for share in self.mean(torch.tensor(flags, dtype=torch.float32, device=self.device)).tolist()]

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor, of one shape, one after another along the first axis, on every rank."""
        if self.world_size == 1:
            return values
        everywhere = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(everywhere, values.contiguous())
        return torch.cat(everywhere)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def wait_at_most(self, seconds: float) -> None:
        """The longest that a collective which begins from now on may take, of every process group (DeepSpeed makes more)."""
        if self.world_size > 1 and dist.is_initialized():
            for group in list(dist.distributed_c10d._world.pg_map):
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)

    def leave(self) -> None:
        """Ends the process group when every rank is here; after an error no rank may call it, others still wait in a collective."""
        self.barrier()
        dist.destroy_process_group()


def start_runtime() -> Runtime:
    """Joins the process group that the launcher's environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, ...) describes.

    Without a launcher this is a job of one rank. The group is made here, before anything of DeepSpeed: its own first use
    would fix a ten-minute timeout.
    """
    import deepspeed

    # torch 2.13 deprecates names of collectives that DeepSpeed 0.19.8 and we still need for torch 2.8, a warning a call;
    # DeepSpeed's start-up chatter hides the arithmetic that the run prints.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*is deprecated")
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # a lone `python sycoca_ds/train.py` has no launcher: DeepSpeed would look for MPI
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "0"),
    ):
        os.environ.setdefault(name, value)
    local_rank = int(os.environ["LOCAL_RANK"])
    # DeepSpeed's launcher says LOCAL_SIZE, torchrun LOCAL_WORLD_SIZE
    local_world = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    # without it DeepSpeed's CPU accelerator starts `numactl` whenever it wants to know how many devices there are: every reduction
    os.environ.setdefault("LOCAL_SIZE", str(local_world))
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":  # DeepSpeed's word for leaving GPUs alone
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{socket.gethostname()} has {torch.cuda.device_count()} GPUs, and was to run more ranks: lower its slots in the "
                "hostfile (or --nproc-per-node, --ntasks-per-node) to that"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    else:
        device = torch.device("cpu")
        # ranks of one machine share its cores: more threads than cores makes every kernel wait
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    if device.type == "cpu":
        # the group's start loads an operator; it would wait without end, and without a word, for the lock of a killed build
        wait_for_builds()
    backend = "nccl" if device.type == "cuda" else "gloo"
    with said_if_compiling() if device.type == "cpu" else contextlib.nullcontext():
        hosts = meet(backend, device, GROUP_TIMEOUT)
        deepspeed.init_distributed(dist_backend=backend, timeout=GROUP_TIMEOUT, verbose=False)
    runtime = Runtime(dist.get_rank(), local_rank, dist.get_world_size(), device, local_world, hosts)
    counts = Counter(hosts)
    if len(counts) > 1:
        runtime.say(f"ranks: {len(hosts)} on {', '.join(f'{host} ({count})' for host, count in counts.items())}")
    if device.type == "cpu":
        _free_at_exit(runtime)
    return runtime


def _free_at_exit(runtime: Runtime) -> None:
    """DeepSpeed's collectives on a CPU leave 66 MiB of memory a rank behind, however a run ends: a file in /dev/shm that nobody
    removes. Once every rank has it open the name is not needed, and without one the kernel frees it with the last process."""
    runtime.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{runtime.rank}").unlink(missing_ok=True)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch; called with seed + rank after the model is built."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of the generators that `seed_everything` seeds, as plain tensors and numbers."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undoes to `random_state`'s moment."""
    random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in state["python"]))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 is worth it here: on a GPU, if it has it; on a CPU, if forward and backward of a linear layer of the size
    of the tiny model's are at least 1.2 times as fast as in float32."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else bf16_speed_up() > 1.2


def bf16_speed_up(seconds: float = 2.0) -> float:
    """How many times as fast as in float32 such a layer runs in bf16, measured for `seconds`.

    The fastest of many calls of a millisecond, the two types in turn, in processor seconds of one thread: what else the machine
    does can only make a call slower, and hardly all of one type. Means of wall-clock time differ by a factor of two.
    """

    def layer_of(dtype: torch.dtype) -> Callable[[], float]:
        layer = torch.nn.Linear(128, 512, dtype=dtype)
        x = torch.randn(256, 128, dtype=dtype, requires_grad=True)

        def call() -> float:
            start = time.thread_time()
            layer(x).sum().backward()
            return time.thread_time() - start

        call()  # chooses and compiles kernels
        return call

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        narrow, wide = layer_of(torch.bfloat16), layer_of(torch.float32)
        end, fastest = time.perf_counter() + seconds, [math.inf, math.inf]
        while time.perf_counter() < end:
            fastest = [min(fastest[0], narrow()), min(fastest[1], wide())]
    finally:
        torch.set_num_threads(threads)
    return fastest[1] / fastest[0]
