"""An exponential moving average (EMA) of the weights: after every update, ema <- decay * ema + (1 - decay) * weights.

Each rank keeps that of its own piece of the float32 master weights, beside them: 4 bytes a weight, divided as ZeRO divides them,
and nothing is gathered or sent. A checkpoint holds it in files of its own (checkpoint/ema_files.py), not in the optimizer's state:
they are read without anything else, and cut anew for any number of ranks.

In float32 a weight that differs from its average by less than 2^-25 / (1 - decay) of it, 3e-4 at 0.9999, moves that no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.optim.swa_utils import get_ema_multi_avg_fn

from sycoca_ds.engine.checkpoint import ema_files
from sycoca_ds.engine.master_weights import Piece, master_pieces


class Ema:
    """The average of a DeepSpeed engine's weights; starts at them.

    Attributes:
        pieces: this rank's, by name of the parameter; none without a decay.
    """

    def __init__(self, engine, decay: float | None) -> None:
        """Without a decay (None) it holds nothing, and all of its methods do nothing."""
        self._engine, self._decay = engine, decay
        self._weights = {} if decay is None else master_pieces(engine.module)
        self.pieces = {name: Piece(start, values.clone()) for name, (start, values) in self._weights.items()}

    def update(self, *, taken: bool) -> None:
        """After a step: `taken` says whether it changed the weights; no collective, no wait."""
        if taken and self.pieces:
            averages, weights = ([piece.values for piece in own.values()] for own in (self.pieces, self._weights))
            get_ema_multi_avg_fn(self._decay)(averages, weights, None)

    def files(self) -> dict[str, Any]:
        """What this rank saves: file name -> content. Without ZeRO all ranks hold the same, and rank 0 saves it."""
        rank = self._engine.global_rank
        if not self.pieces or (self._engine.zero_optimization_stage() == 0 and rank > 0):
            return {}
        return {ema_files.NAME.format(rank): ema_files.content(self.pieces)}

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Goes back to a checkpoint's, saved by any number of ranks; where it has none, to the weights.

        Args:
            folder: the checkpoint from which the engine's weights have just been restored.
            state: what the checkpoint's seal says.
        """
        if self._decay is None:
            return
        self._weights = master_pieces(self._engine.module)  # loading may have linked them anew
        saved = ema_files.names(state)
        if saved:
            own = ema_files.NAME.format(self._engine.global_rank)
            ema_files.fill(folder, sorted(saved, key=lambda name: name != own), self.pieces)
        else:
            for name, piece in self.pieces.items():
                piece.values.copy_(self._weights[name].values)
