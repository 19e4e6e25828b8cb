"""Kinds of GPU, and everything that a plan takes for granted. Each assumption is a field with its source, an option of the command,
and a line of what it prints."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from sycoca_ds.engine.monitoring.peaks import PEAK_TFLOPS

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One accelerator, by its maker's data sheet."""

    memory_gib: float
    """As PyTorch reports it (the total of its out-of-memory messages), which is less than on the box."""
    tflops: float
    """Peak of dense bf16 matrix products with float32 sums, 1e12 a second."""
    memory_gbytes: float
    """Of its own memory, 1e9 bytes a second."""
    link_gbytes: float
    """To the other GPUs of its machine, one direction, 1e9 bytes a second: NVLink, or PCIe 4.0 x16 at 32."""
    watts: float
    """With its share of the machine at full load: the maker's eight-GPU system by eight, else twice the board."""
    cpu: bool = False
    """No GPU at all: a rank on this machine's cores, in its memory."""


GPUS = {
    "a100-40g": Gpu(39.5, PEAK_TFLOPS["A100"], 1555, 300, 812),
    "a100-80g": Gpu(79.1, PEAK_TFLOPS["A100"], 2039, 300, 812),
    "h100-80g": Gpu(79.1, PEAK_TFLOPS["H100"], 3350, 450, 1275),
    "h200-141g": Gpu(139.8, PEAK_TFLOPS["H200"], 4800, 450, 1275),
    "b200-180g": Gpu(178.3, PEAK_TFLOPS["B200"], 7700, 900, 1787),
    "l40s-48g": Gpu(44.4, PEAK_TFLOPS["L40S"], 864, 32, 700),
    "rtx4090-24g": Gpu(23.5, PEAK_TFLOPS["RTX 4090$"], 1008, 32, 900),
}
"""SXM boards where the name has no other form. Systems: DGX A100 6.5 kW, DGX H100 and H200 10.2 kW, DGX B200 14.3 kW."""
CORE_TFLOPS = 0.2
"""Of one CPU core: two reached 160 GFLOP/s (benchmarks/results/2026-11-25_step_cost.md), which is this at the usual efficiency."""


def this_machine(ranks: int) -> Gpu:
    """A rank on this machine's cores: its share of memory and cores."""
    with open("/proc/meminfo") as file:
        total = int(re.search(r"MemTotal:\s+(\d+)", file.read())[1]) * 1024
    cores = len(os.sched_getaffinity(0))
    return Gpu(total / GIB / ranks, CORE_TFLOPS * cores / ranks, 20 / ranks, 10, 200 / ranks, cpu=True)


@dataclass(frozen=True)
class Assumptions:
    """What cannot be known from the configuration. None is measured on your machines: replace those that you know."""

    efficiency: float = 0.40
    """Share of the peak that matrix products reach over a step's computation. NeMo's CLIP ViT-g/14 trains at 0.39 on 16 A100,
    language models of this size at 0.45 to 0.57 (MosaicML llm-foundry); open_clip's ViT-L/14 ran at 0.12 on 400. Measured
    here once each, before faults were mended: 0.12 on an H200, 0.14 on an H100."""
    hidden: float = 0.8
    """Share of the collectives that DeepSpeed runs beside computation and that really cost no time."""
    link_share: float = 0.8
    """Share of a link's rate that collectives reach, within a machine and between machines."""
    launch_us: float = 30.0
    """What a collective takes however small it is, microseconds."""
    block_ms: float = 0.8
    """What the host needs to queue a block's forward and backward pass, milliseconds; a step is never shorter. Measured on one
    core of an AMD EPYC, as the next two are (`benchmarks/investigations/block_overhead.py`)."""
    zero3_block_ms: float = 1.1
    """What stage 3 adds: its hooks run around every block. It was 3.5 when they ran around every module in it; 30 % of that are
    left (benchmarks/results/2026-11-27_zero3_hooks.md)."""
    recompute_block_ms: float = 1.4
    """What recomputing adds."""
    framework_gib: float | None = None
    """Memory a GPU that is no tensor of the run: CUDA context, cuBLAS workspaces, NCCL's buffers. Default: 2.0, a guess; on a CPU
    0.8, what a rank has after Python, torch and DeepSpeed are loaded."""
    reserve: float = 0.05
    """Share of the GPU's memory left free, for the allocator's gaps."""
    caption_tokens: float | None = None
    """Real tokens of a caption on average, [SOT] and [EOT] counted; text encoder, text decoder and vocabulary run on those alone.
    Default: the context length, which is the most."""
    loader_pictures: float = 1850.0
    """Pictures a second that one loader process decodes and packs (benchmarks/results/2026-11-25_loader_speed.md, 256 px)."""
    sample_kb: float = 46.0
    """Kilobytes of a sample in its shard (same note)."""
    save_gbytes: float = 2.0
    """What a rank copies of its part of the checkpoint to its host's memory while the training stands, 1e9 bytes a second; writing
    goes on beside it. Two cores of an AMD EPYC reached 2.4 to 3.5 from memory to memory; a rank with an H200 0.9, with a checksum
    that is left out since."""
    write_gbytes: float = 0.5
    """What a rank writes to disk with its checksums, 1e9 bytes a second: how long the training stands where a copy in memory does
    not fit."""
    host_gib: float | None = None
    """Memory of a machine beside that of its processes, for offloaded states and the copy that a save makes. Default: enough; on a
    CPU what the ranks leave of this machine's."""
    save_seconds: float | None = None
    """Seconds for which a save stops the training; default: rank 0's part of the checkpoint at `save_gbytes` or `write_gbytes`."""
    node_mttf_days: float = 154.0
    """Days after which a machine fails, on average: 6.5 failures in 1,000 machine days (Meta's RSC-1, arXiv 2410.21680)."""
    restart_minutes: float = 5.0
    """From a failure to the first step after it."""
    load: float = 0.8
    """Share of the full-load power that a training draws."""
    pue: float = 1.2
    """Power of the whole data centre over that of its machines."""
    price: float | None = None
    """Price of a GPU hour, in whatever currency; default: none is printed."""


@dataclass(frozen=True)
class Machine:
    """The cluster a plan is for."""

    gpu: Gpu
    name: str
    nodes: int
    gpus_per_node: int
    fabric_gbps: float
    """Of a machine to the others, all its adapters together, one direction, 1e9 bits a second."""
    assume: Assumptions = field(default_factory=Assumptions)

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable(self) -> int:
        """Bytes of a GPU's memory that a plan may fill."""
        return int(self.gpu.memory_gib * GIB * (1 - self.assume.reserve))

    @property
    def framework(self) -> int:
        default = 0.8 if self.gpu.cpu else 2.0
        return int((default if self.assume.framework_gib is None else self.assume.framework_gib) * GIB)


def find_gpu(name: str, ranks_of_a_machine: int) -> Gpu:
    """The GPU of that name, or "cpu".

    Raises:
        UserError: no such kind.
    """
    if name == "cpu":
        return this_machine(ranks_of_a_machine)
    if name not in GPUS:
        raise UserError(
            f"--gpu {name}: no such kind{nearest(name, list(GPUS))} (expected cpu or one of {', '.join(GPUS)}; for another one "
            "take the most like it and give --memory-gib, --tflops, --memory-gbytes, --link-gbytes, --watts)"
        )
    return GPUS[name]
