"""Which captions are shown as best and worst: those whose image comes first, and last."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from sycoca_ds.eval.tasks import retrieval_examples


class Captions(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.captions)


def test_best_and_worst_are_by_the_place_of_the_own_image() -> None:
    """Images on the axes; caption n lies nearest to image 0, then 1, ..: its own image n comes at place n + 1, but that of 7 at
    once."""
    images = 8
    near = torch.arange(images, 0, -1, dtype=torch.float64)
    text_TE = near.repeat(images, 1)
    text_TE[7] = 0
    text_TE[7, 7] = 1
    data = Captions(
        captions=[f"caption {n}" for n in range(images)],
        captions_of_image=[[f"caption {n}"] for n in range(images)],
        image_of_text_T=np.arange(images),
    )
    options = SimpleNamespace(gallery=2, seed=0)
    details = retrieval_examples.run(
        SimpleNamespace(collection=data, image_IE=torch.eye(images), text_TE=text_TE, options=options)
    ).details
    assert [(row["caption"], row["rank"]) for row in details["best"]] == [("caption 0", 1), ("caption 7", 1), ("caption 1", 2)]
    assert [(row["caption"], row["rank"]) for row in details["worst"]] == [("caption 6", 7), ("caption 5", 6), ("caption 4", 5)]
    assert details["worst"][0]["own"] == 6 and details["worst"][0]["images"] == [0, 1, 2, 3, 4]
    assert [row["caption"] for row in details["examples"]] == ["caption 0", "caption 7"], "at even distances, as before"
