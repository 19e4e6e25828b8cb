"""Whether every device still computes and the ranks still add up: a matrix product and a sum over ranks whose results are known."""

from __future__ import annotations

import torch
import torch.distributed as dist

from sycoca_ds.engine.ranks.runtime import Runtime

SIDE = 512
"""Of the matrices. Their elements are whole numbers of at most 3 in size, so every sum is exact in float32, in any order."""


def faults(runtime: Runtime) -> list[str]:
    """What is wrong, a sentence for each rank that found something; empty if nothing. Every rank calls it."""
    generator = torch.Generator().manual_seed(20)
    a, b = (torch.randint(-3, 4, (SIDE, SIDE), generator=generator) for _ in range(2))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        product = (a.to(runtime.device, dtype) @ b.to(runtime.device, dtype)).cpu()
        wrong = int((product != (a @ b).to(dtype)).sum())
        if wrong:
            found.append(f"{wrong} of {SIDE * SIDE} elements of a {str(dtype)[6:]} matrix product are wrong")
    if runtime.world_size > 1:
        total = (a[0] * (runtime.rank + 1)).to(runtime.device, torch.float32)
        dist.all_reduce(total)
        wrong = int((total.cpu() != a[0] * sum(range(1, runtime.world_size + 1))).sum())
        if wrong:
            found.append(f"{wrong} of {SIDE} elements of a sum over ranks are wrong")
    return [f"rank {rank}: {text}" for rank, texts in enumerate(runtime.gather(found)) for text in texts]
