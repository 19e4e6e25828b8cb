"""Frozen features of pictures, computed once, in pieces that a kill leaves.

Legend: N pictures that have a class, D width of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.progress import Progress
from sycoca_ds.eval.bench import Bench
from sycoca_ds.eval.kept import pieces
from sycoca_ds.eval.probe.data import Labelled

FEATURES = {"output": "image_outputs", "embedding": "image_features"}
"""{what `--probe-features` may be: the model's task}."""
PIECE = 4096
"""Pictures of one file."""


@dataclass(frozen=True)
class Known:
    """Features and classes of the pictures that have a class, in order."""

    feature_ND: np.ndarray
    """float64: in float32 L-BFGS stops where sums can no longer tell whether it descends, and another machine stops elsewhere."""
    label_N: np.ndarray

    def __len__(self) -> int:
        return len(self.label_N)

    def only(self, which_N: np.ndarray) -> Known:
        return Known(self.feature_ND[which_N], self.label_N[which_N])

    def and_then(self, other: Known) -> Known:
        """Both, one behind the other."""
        return Known(np.concatenate([self.feature_ND, other.feature_ND]), np.concatenate([self.label_N, other.label_N]))


def known(bench: Bench, labelled: Labelled) -> Known:
    """Features as `--probe-features` says; NAME_00000.npz and so on hold them as float32, with image_id and label.

    Raises UserError: features that are not finite.
    """
    task, data = FEATURES[bench.options.probe_features], labelled.pictures
    found = []
    with Progress(f"features of {labelled.name} images", total=len(data), unit="images") as bar:
        for number, among in pieces(len(data), PIECE):

            def look(among: range = among) -> dict[str, np.ndarray]:
                rows = []
                for numbers, image in data.batches(bench.options.batch_size, among):
                    rows.append(bench.call(task, image_BCHW=bench.pixels(image)).float().cpu())
                    bar.advance(len(numbers))
                return {
                    "feature": torch.cat(rows).numpy(),
                    "label": labelled.label_I[among.start : among.stop],
                    "image_id": np.array([data.pictures[n].image_id for n in among]),
                }

            found.append(bench.kept.arrays(f"{labelled.name}_{number}", look)["feature"])
            bar.set(among.stop)
    feature_ID = np.concatenate(found)
    if not np.isfinite(feature_ID).all():
        raise UserError("linear probe: the model's features are not finite; the checkpoint is damaged or diverged")
    has = labelled.label_I >= 0
    return Known(feature_ID[has].astype(np.float64), labelled.label_I[has])
