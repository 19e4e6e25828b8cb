"""Whether every device still computes and the ranks still add up: a matrix product and a sum over ranks whose results are known."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.distributed as dist

from sycoca_ds.engine.ranks.runtime import Runtime

SIDE = 512
"""Of the matrices. Their elements are whole numbers of at most 3 in size, so every sum is exact in float32, in any order."""


def faults(runtime: Runtime) -> list[str]:
    """What is wrong, a sentence for each rank that is to blame, or one that names none; empty if nothing. Every rank calls it."""
    a, b = _matrices()
    expected = torch.mm(a.double(), b.double())  # exact, and 40 times as fast as in whole numbers
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        product = (a.to(runtime.device, dtype) @ b.to(runtime.device, dtype)).cpu()
        wrong = int((product != expected.to(dtype)).sum())
        if wrong:
            found.append(f"{wrong} of {SIDE * SIDE} elements of a {str(dtype)[6:]} matrix product are wrong")
    said = [f"rank {rank}: {text}" for rank, texts in enumerate(runtime.gather(found)) for text in texts]
    return said + _faults_of_sums(runtime)


def _faults_of_sums(runtime: Runtime) -> list[str]:
    """A sum that only some ranks have wrong is theirs. One that is wrong everywhere was spoilt by what a rank gave, or on the way:
    then each gives alone, the others nothing."""
    everyone = range(runtime.world_size)
    wrong = _wrong_in_sum(runtime, everyone)
    if not all(wrong):
        return [
            f"rank {rank}: {count} of {SIDE} elements of a sum over ranks are wrong" for rank, count in enumerate(wrong) if count
        ]
    alone = [max(_wrong_in_sum(runtime, [rank])) for rank in everyone]
    if all(alone) or not any(alone):
        again = "wherever they come from" if all(alone) else "and none when each rank gives alone"
        return [f"{max(wrong)} of {SIDE} elements of a sum are wrong on all ranks, {again}"]
    return [
        f"rank {rank}: {count} of {SIDE} elements that it gives to a sum over ranks are wrong"
        for rank, count in enumerate(alone)
        if count
    ]


def _wrong_in_sum(runtime: Runtime, givers: Collection[int]) -> list[int]:
    """How many elements of a sum to which only `givers` give are wrong, on every rank."""
    if runtime.world_size == 1:
        return [0]
    row = _matrices()[0][0]
    total = (row * (runtime.rank + 1) * (runtime.rank in givers)).to(runtime.device, torch.float32)
    dist.all_reduce(total)
    return runtime.gather(int((total.cpu() != row * sum(rank + 1 for rank in givers)).sum()))


def _matrices() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(20)
    a, b = (torch.randint(-3, 4, (SIDE, SIDE), generator=generator) for _ in range(2))
    return a, b
