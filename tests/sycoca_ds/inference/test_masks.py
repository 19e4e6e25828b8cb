"""`Model.masks`: what training hides; `among`: scores that look at other pictures than those of a call."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import sycoca_ds
from data_pipeline.errors import UserError
from sycoca_ds.config import MaskingConfig
from sycoca_ds.inference.model import Model
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.trainings.eval_world import SMALL, make_run

TEXTS = ["a large red ring", "a small blue square in the north", "nothing"]
UNEVEN = MaskingConfig(high_ratio=0.3, low_ratio=0.15)
pytestmark = pytest.mark.slow


def opened(folder: Path, **change) -> Model:
    make_run(folder, dataclasses.replace(SMALL, **change))
    return sycoca_ds.load(folder, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(3).integers(0, 256, (3, 48, 48, 3), np.uint8))


def test_the_best_patches_are_hidden_from_tg_mim_and_the_worst_from_captioning(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    model = opened(tmp_path / "run", masking=UNEVEN)
    found = model.masks(pictures, TEXTS)
    for mask, attention, rebuilt in zip(found, model.attention(pictures, TEXTS), model.reconstruct(pictures, TEXTS), strict=True):
        score_N = mask.scores.ravel()
        assert np.allclose(mask.scores, attention.scores, rtol=0, atol=1e-6) and len(np.unique(score_N)) > 30
        assert set(np.flatnonzero(mask.mim)) == set(np.argsort(-score_N, kind="stable")[:11]), "round(0.3 of 36)"
        assert set(np.flatnonzero(mask.captioning)) == set(np.argsort(score_N, kind="stable")[:5]), "round(0.15 of 36)"
        assert np.array_equal(mask.mim, rebuilt.hidden) and np.array_equal(mask.picture, rebuilt.picture)
    assert any(not np.array_equal(found[0].mim, mask.mim) for mask in found[1:])
    for one, other in zip(found, model.masks(pictures, TEXTS, batch_size=1), strict=True):
        assert np.allclose(one.scores, other.scores, rtol=0, atol=1e-6) and np.array_equal(one.mim, other.mim)
    assert model.masks([], "a ring") == []


def test_they_are_those_of_the_training_step(tmp_path: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = opened(tmp_path / "run", masking=UNEVEN), []
    encode = SyCoCa._encode_kept
    monkeypatch.setattr(SyCoCa, "_encode_kept", lambda self, *given: kept.extend(given[2]) or encode(self, *given))
    image_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    text_BL = torch.as_tensor(model.loaded.tokenizer.encode(TEXTS, model.context_length))
    model.loaded.model("train", image_BCHW=image_BCHW, text_BL=text_BL)
    for name, keep_BK in zip(("captioning", "mim"), kept, strict=True):
        for mask, keep_K in zip(model.masks(pictures, TEXTS), keep_BK, strict=True):
            assert set(np.flatnonzero(~getattr(mask, name))) == set(keep_K.tolist())


@pytest.mark.parametrize(
    "change, mim, captioning",
    [
        ({"family": "clip"}, None, None),
        ({"family": "coca"}, None, None),
        ({"masking": MaskingConfig(mim="none")}, False, True),
        ({"masking": MaskingConfig(low_ratio=0.0, similarity="saliency")}, True, False),
    ],
    ids=["clip", "coca", "no-mim", "nothing-from-captioning"],
)
def test_what_hides_nothing_says_so(change: dict, mim: bool, captioning: bool, tmp_path: Path, pictures: list[np.ndarray]) -> None:
    model = opened(tmp_path / "run", **change)
    if mim is None:
        with pytest.raises(UserError, match=re.escape(f"({change['family']}) was trained without: it hides no patches")):
            model.masks(pictures[0], "a ring")
        return
    (found,) = model.masks(pictures[0], "a ring")
    assert (found.mim is not None, found.captioning is not None) == (mim, captioning)


def test_other_pictures_than_those_of_the_call(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    model = opened(tmp_path / "run", masking=MaskingConfig(similarity="centred_over_pictures"))
    together, alone = model.masks(pictures, TEXTS), model.masks(pictures[0], TEXTS[0])[0]
    sum_IE = model.patch_sums(pictures, batch_size=2)
    assert sum_IE.shape == (3, SMALL.embed_dim) and model.patch_sums([]).shape == (0, SMALL.embed_dim)
    among = model.among(torch.from_numpy(sum_IE).sum(dim=0), 3)
    assert np.allclose(among.masks(pictures[0], TEXTS[0])[0].scores, together[0].scores, rtol=0, atol=1e-6)
    assert np.allclose(among.reconstruct(pictures[0], TEXTS[0])[0].scores, together[0].scores, rtol=0, atol=1e-6)
    assert not np.allclose(alone.scores, together[0].scores, atol=1e-3)
    again = model.masks(pictures[0], TEXTS[0])[0]
    assert np.array_equal(again.scores, alone.scores), "the model itself is as it was"
