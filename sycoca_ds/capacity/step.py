"""One training step on one rank: everything that its memory, its traffic and its time depend on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from sycoca_ds.capacity.parameters import all_shapes
from sycoca_ds.capacity.pieces import Checkpointing, Kernels, Piece, Work, forward_pieces
from sycoca_ds.capacity.states import Engine, Sharding
from sycoca_ds.config import LossConfig, ModelConfig
from sycoca_ds.engine.batches import BatchPlan


@dataclass(frozen=True)
class Step:
    """What a rank's memory depends on."""

    model: ModelConfig
    sharding: Sharding
    batches: BatchPlan
    checkpointing: Checkpointing
    cpu: bool = False
    """On a CPU attention and norms keep more in bf16, and a bucket's untouched pages cost nothing."""
    framework: int = 0
    caption_tokens: float | None = None
    ema: bool = False
    loss: LossConfig = LossConfig()

    @cached_property
    def engine(self) -> Engine:
        return _engine(self.model, self.sharding, self.batches.world_size, self.ema, self.cpu)

    @cached_property
    def pieces(self) -> list[Piece]:
        """The forward pass of a micro-batch."""
        work = Work(
            self.model,
            self.batches.micro_batch_size,
            self.batches.global_batch_size,
            Kernels(self.sharding.weight_bytes, casts=self.cpu and self.sharding.precision == "bf16"),
            self.checkpointing,
            whole_contrast=self.batches.accumulation_steps == 1,
            late_interaction=self.loss.late_interaction > 0,
            caption_tokens=self.caption_tokens,
        )
        return forward_pieces(work)


@lru_cache(maxsize=64)
def _engine(model: ModelConfig, sharding: Sharding, ranks: int, ema: bool, cpu: bool) -> Engine:
    """One for all batches: it adds up the numbers of every weight once."""
    return Engine(all_shapes(model), sharding, ranks, ema, cpu)
