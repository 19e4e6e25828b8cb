"""TG-MIM's gap by what a patch shows: hidden patches rebuilt with the own caption and with another picture's, kind by kind.

One gap over all hidden patches says that the caption helps, not with what: a caption that names the background may help there only.
The hidden set is chosen once, by the own caption; only the guide differs. Legend: B batch, N patches, K kinds, M masks, G guides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence

import numpy as np
import torch
from torch import Tensor

from sycoca_ds.config import MaskingConfig
from sycoca_ds.eval.regions.patches import BACKGROUND, NAMED, NAMED_BACKGROUND, UNNAMED, Regions
from sycoca_ds.eval.stats.controls import RESAMPLES, gap_metrics, relative_gap
from sycoca_ds.model.objectives import patch_moments

KINDS = {"named": NAMED, "unnamed": UNNAMED, "background": BACKGROUND, "named_background": NAMED_BACKGROUND}
MASKS = {"": "attention", "random_": "random"}
"""Prefix of a gap's name -> how the hidden patches are chosen."""


def patch_errors(out: dict[str, Tensor], masking: MaskingConfig) -> Tensor:
    """(G B, N) float32: mean absolute error of each patch in the units of the target, whose mean over hidden patches is `l1_B`; a
    row for each of the G guides a picture that `reconstruct` was given."""
    target_BNP = out["target_BNP"].float()
    guides = len(out["pixels_BNP"]) // len(target_BNP)
    error_BN = (out["pixels_BNP"].float() - target_BNP.repeat(guides, 1, 1)).abs().mean(dim=2)
    if masking.target == "normalised_pixels":
        error_BN = error_BN / patch_moments(target_BNP)[1].squeeze(2).repeat(guides, 1)
    return error_BN


def kind_errors(
    call: Callable[..., dict[str, Tensor]],
    masking: MaskingConfig,
    regions: Regions,
    numbers: Sequence[int],
    own_BL: Tensor,
    other_BL: Tensor,
    **inputs: Tensor,
) -> Tensor:
    """(B, M, G, K) float32: mean error of the hidden patches of each kind, by both masks, guided by the own caption and by the
    other one; NaN where a picture hides none of a kind.

    Args:
        call: the model. inputs: image_BCHW and key_B.
    """
    guide_BL = torch.cat([own_BL, other_BL])
    outs = (call("reconstruct", text_BL=own_BL, guide_BL=guide_BL, mask_by=mask_by, **inputs) for mask_by in MASKS.values())
    return torch.stack([errors_by_kind(out, masking, regions, numbers) for out in outs], dim=1)


def errors_by_kind(out: dict[str, Tensor], masking: MaskingConfig, regions: Regions, numbers: Sequence[int]) -> Tensor:
    """(B, G, K) float32 of what one `reconstruct` gave of these pictures, by both guides; as `kind_errors`."""
    kind_BN = torch.from_numpy(np.stack([regions.kinds(number) for number in numbers])).to(out["hidden_BN"].device)
    chosen_KBN = torch.stack([kind_BN == kind for kind in KINDS.values()]) & out["hidden_BN"]
    count_KB, guides = chosen_KBN.sum(2), []
    for error_BN in patch_errors(out, masking).chunk(2):
        summed_KB = (error_BN * chosen_KBN).sum(2)
        guides.append((summed_KB / count_KB).masked_fill(count_KB == 0, math.nan).T)
    return torch.stack(guides, dim=1)


def gap_numbers(error_IMGK: np.ndarray, seed: int = 0, intervals: bool = True) -> dict[str, float]:
    """`gap_KIND` and `random_gap_KIND` in percent with `_low` and `_high`, from what `kind_errors` gives of all pictures; a kind
    that fewer than two pictures hide is left out."""
    numbers: dict[str, float] = {}
    for mask, prefix in enumerate(MASKS):
        for place, kind in enumerate(KINDS):
            own_I, other_I = (error_IMGK[:, mask, guide, place].astype(np.float64) for guide in (0, 1))
            there_I = np.isfinite(own_I) & np.isfinite(other_I)
            name = f"{prefix}gap_{kind}"
            if there_I.sum() < 2:
                continue
            if intervals:
                found = gap_metrics(own_I[there_I], other_I[there_I], RESAMPLES, seed)
                numbers |= {name: found["gap"], f"{name}_low": found["gap_low"], f"{name}_high": found["gap_high"]}
            else:
                numbers[name] = relative_gap(own_I[there_I].mean(), other_I[there_I].mean())
    return numbers


def gap_errors(error_IMGK: np.ndarray, numbers: Container[str]) -> dict[str, np.ndarray]:
    """(I,) errors of each picture behind the gaps among `numbers`: `own_l1_KIND`, `other_l1_KIND`, and both of random masks."""
    return {
        f"{prefix}{whose}_l1_{kind}": error_IMGK[:, mask, guide, place]
        for mask, prefix in enumerate(MASKS)
        for place, kind in enumerate(KINDS)
        for guide, whose in enumerate(("own", "other"))
        if f"{prefix}gap_{kind}" in numbers
    }
