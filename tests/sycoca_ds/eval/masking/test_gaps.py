"""Gaps by kind of patch against slow loops over patches."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sycoca_ds.eval.masking.gaps import KINDS, MASKS, gap_numbers, kind_errors, patch_errors
from sycoca_ds.eval.regions.patches import BACKGROUND, NAMED, NAMED_BACKGROUND, NONE, UNNAMED, PictureRegions, Regions
from sycoca_ds.eval.stats.controls import gap_metrics
from tests.worlds.models.small_model import random_inputs, small_model

KIND_IN = np.array(
    [
        [NAMED] * 4 + [UNNAMED] * 4 + [BACKGROUND] * 7 + [NONE],
        [NAMED] * 8 + [NAMED_BACKGROUND] * 8,
        [NONE] * 16,
        [UNNAMED] * 2 + [NAMED] * 2 + [BACKGROUND] * 12,
    ],
    np.int8,
)
REGIONS = Regions("x", tuple(PictureRegions(kind_N, ()) if (kind_N != NONE).any() else None for kind_N in KIND_IN), {})


@pytest.mark.parametrize("target", ["pixels", "normalised_pixels"])
def test_errors_by_kind_are_means_over_hidden_patches(target: str) -> None:
    model, inputs = small_model(target=target), random_inputs()
    own, other = inputs.pop("text_BL"), random_inputs(seed=1)["text_BL"]
    masking = model.config.masking
    with torch.no_grad():
        found = kind_errors(model, masking, REGIONS, range(4), own, other, **inputs)
        assert found.shape == (4, len(MASKS), 2, len(KINDS))
        for m, mask_by in enumerate(MASKS.values()):
            for g, guide in enumerate((own, other)):  # one after the other; `kind_errors` asks for both at once
                out = model("reconstruct", text_BL=own, guide_BL=guide, mask_by=mask_by, **inputs)
                error = patch_errors(out, masking)
                assert torch.allclose((error * out["hidden_BN"]).sum(1) / out["hidden_BN"].sum(1), out["l1_B"], rtol=1e-4)
                for row in range(4):
                    for k, kind in enumerate(KINDS.values()):
                        there = [n for n in range(16) if out["hidden_BN"][row, n] and KIND_IN[row, n] == kind]
                        slow = np.mean([error[row, n].item() for n in there]) if there else math.nan
                        assert found[row, m, g, k].item() == pytest.approx(slow, rel=1e-5, nan_ok=True)
    assert found[2].isnan().all() and (found[0, 0, 0, :3].isfinite() | found[0, 1, 0, :3].isfinite()).all()


def test_numbers_are_the_gaps_of_each_kind_alone() -> None:
    random = np.random.default_rng(0)
    error = random.uniform(0.5, 1.5, (40, 2, 2, 4)).astype(np.float32)
    error[:, :, 0, 0] = 0.8 * error[:, :, 1, 0]  # on named objects the own caption helps by 20 %
    error[:, :, 0, 1] = error[:, :, 1, 1]  # on unnamed ones not at all
    error[3, :, :, 2] = np.nan
    error[1:, :, :, 3] = np.nan  # one picture with a named background
    found = gap_numbers(error, seed=2)
    assert found["gap_named"] == pytest.approx(20, abs=1e-3) and found["random_gap_named_low"] == pytest.approx(20, abs=1e-3)
    assert found["gap_unnamed"] == found["gap_unnamed_high"] == 0.0
    there = np.arange(40) != 3
    expected = gap_metrics(error[there, 1, 0, 2], error[there, 1, 1, 2], seed=2)
    assert {name: found[f"random_{name}".replace("gap", "gap_background")] for name in ("gap", "gap_low", "gap_high")} == {
        name: pytest.approx(expected[name]) for name in ("gap", "gap_low", "gap_high")
    }
    assert not [name for name in found if "named_background" in name]
    assert gap_numbers(error, intervals=False) == {
        name: value for name, value in found.items() if not name.endswith(("low", "high"))
    }


def test_a_model_whose_decoder_reads_no_text_has_no_gap() -> None:
    model, inputs = small_model(mim="plain"), random_inputs()
    own, other = inputs.pop("text_BL"), random_inputs(seed=1)["text_BL"]
    with torch.no_grad():
        error = kind_errors(model, dataclasses.replace(model.config.masking), REGIONS, range(4), own, other, **inputs)
    assert all(value == 0.0 for value in gap_numbers(error.numpy(), intervals=False).values())
