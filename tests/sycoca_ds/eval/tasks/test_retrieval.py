"""Retrieval as a task: which captions count, and which are shown as best and worst."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from sycoca_ds.eval.stats.recalls import chance_recalls, retrieve
from sycoca_ds.eval.tasks.retrieval import first_captions, run_retrieval


class Captions(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.captions_of_image)


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
    options = SimpleNamespace(gallery=2, seed=0, captions_per_image=0)
    details = run_retrieval(SimpleNamespace(collection=data, image_IE=torch.eye(images), text_TE=text_TE, options=options)).details
    assert [(row["caption"], row["rank"]) for row in details["best"]] == [("caption 0", 1), ("caption 7", 1), ("caption 1", 2)]
    assert [(row["caption"], row["rank"]) for row in details["worst"]] == [("caption 6", 7), ("caption 5", 6), ("caption 4", 5)]
    assert details["worst"][0]["own"] == 6 and details["worst"][0]["images"] == [0, 1, 2, 3, 4]
    assert [row["caption"] for row in details["examples"]] == ["caption 0", "caption 7"], "at even distances, as before"


def test_the_first_captions_of_each_image_count_where_that_is_asked_for() -> None:
    assert first_captions(np.array([1, 0, 1, 1, 0, 2]), 2).tolist() == [0, 1, 2, 4, 5]
    assert first_captions(np.array([1, 0, 1]), 0).tolist() == [0, 1, 2] == first_captions(np.array([1, 0, 1]), 7).tolist()

    generator = torch.Generator().manual_seed(0)
    image_of_text_T = np.repeat(np.arange(40), np.arange(40) % 3 + 5)  # five, six or seven each
    image_IE, text_TE = torch.randn(40, 8, generator=generator), torch.randn(len(image_of_text_T), 8, generator=generator)
    data = Captions(
        captions=[f"caption {n}" for n in range(len(image_of_text_T))],
        captions_of_image=[[f"caption {n}" for n in np.flatnonzero(image_of_text_T == image)] for image in range(40)],
        image_of_text_T=image_of_text_T,
    )

    def found(most: int) -> dict:
        options = SimpleNamespace(gallery=4, seed=0, captions_per_image=most)
        outcome = run_retrieval(SimpleNamespace(collection=data, image_IE=image_IE, text_TE=text_TE, options=options))
        assert all(
            int(image_of_text_T[int(row["caption"].split()[1])]) == row["own"]
            for kind in ("examples", "best", "worst")
            for row in outcome.details[kind]
        )
        return vars(outcome)

    kept_T = np.array([n for n, image in enumerate(image_of_text_T) if n - np.flatnonzero(image_of_text_T == image)[0] < 5])
    five, whole = found(5), found(0)
    alone = retrieve(image_IE, text_TE[kept_T], torch.from_numpy(image_of_text_T[kept_T])).metrics()
    assert {name: five["numbers"][name] for name in alone} == alone != {name: whole["numbers"][name] for name in alone}
    assert five["chance"] == chance_recalls([5] * 40) and five["details"]["captions"] == 200 and whole["details"]["captions"] == 239
    assert five["details"]["captions_per_image"] == 5 and whole["details"]["captions_per_image"] == "all"
    assert five["each"]["t2i_captions"].tolist() == [5.0] * 40
