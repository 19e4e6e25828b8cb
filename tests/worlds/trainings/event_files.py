"""What TensorBoard's own reader finds in a run's event files."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer


def points(run: Path, tag: str = "loss/total") -> list[tuple[int, float]]:
    """(step, value) of a curve, purged steps left out, as the pages of TensorBoard get them."""
    board = EventMultiplexer(tensor_size_guidance={"scalars": 0})
    board.AddRunsFromDirectory(str(run / "tensorboard"))
    board.Reload()
    return [(event.step, event.tensor_proto.float_val[0]) for event in board.Tensors(".", tag)]
