"""The numbers behind the question whether masks know the caption, each beside its controls, from scores and regions.

A score may look good and know nothing: what stands out is found whatever the caption says, and untrained weights already find it.
So every number stands beside the same under another picture's caption and under none, and what counts is the difference.

| score | caption_ignored | named_over_unnamed | other_named_over_unnamed | objects_over_background |
|---|---|---|---|---|
| finds exactly what is named | 0 to 1 - a / r_h | 1 | 0.5 | above 0.5 |
| finds objects, named or not | 1 | 0.5 | 0.5 | 1 |
| noise | 0 | 0.5 | 0.5 | 0.5 |

These values are those of `tests/sycoca_ds/eval/masking/test_yardstick.py`. Legend: I pictures, C conditions, Q phrases, N patches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sycoca_ds.config import MaskingConfig
from sycoca_ds.eval.masking.attending import attending, hidden_sets, overlap, position_overlap, scores_higher
from sycoca_ds.eval.masking.finding import auc
from sycoca_ds.eval.masking.phrases import phrase_means
from sycoca_ds.eval.regions.patches import BACKGROUND, NAMED, NAMED_BACKGROUND, UNNAMED, PictureRegions, Regions
from sycoca_ds.eval.stats.intervals import resampled
from sycoca_ds.eval.stats.means import Mean, mean_intervals, mean_of

PREFIXES = ("", "other_", "no_text_")
"""Of the numbers under the conditions of `scoring.CONDITIONS`."""
PATCH_MEASURES = ("named_over_unnamed", "named_over_rest", "objects_over_background")


def patch_measures(score_N: np.ndarray, picture: PictureRegions) -> tuple[float, float, float]:
    """`PATCH_MEASURES` of one picture; NaN where it has not what they compare.

    A background that the caption names is not among "everything else": whoever finds it there is right.
    """
    named, unnamed, objects = picture.has(NAMED), picture.has(UNNAMED), picture.has(NAMED, UNNAMED)
    return (
        auc(score_N, named, unnamed),
        auc(score_N, named, picture.has(UNNAMED, BACKGROUND)),
        auc(score_N, objects, picture.has(BACKGROUND, NAMED_BACKGROUND)),
    )


def unasked(regions: Regions) -> tuple[str, ...]:
    """The `PATCH_MEASURES` that compare with what captions leave out, where these leave out nothing of the kind."""
    left_out = {"named_over_unnamed": (UNNAMED,), "named_over_rest": (UNNAMED, BACKGROUND)}
    return tuple(name for name, kinds in left_out.items() if not regions.shows(*kinds))


def means(score_ICRN: np.ndarray, regions: Regions | None, masking: MaskingConfig) -> dict[str, Mean]:
    """Every number that is a mean over pictures or phrases, by name: the dependence on the caption, and, with regions, the measures
    under each condition.

    Args:
        score_ICRN: what `Scorer` gives of all pictures, R = 1 + Q.
    """
    own_IN, other_IN, none_IN = (torch.from_numpy(np.ascontiguousarray(score_ICRN[:, c, 0])) for c in range(3))
    hidden = [hidden_sets(score_IN, masking) for score_IN in (own_IN, other_IN, none_IN)]
    higher = scores_higher(own_IN, other_IN, int(hidden[0][0].sum()))
    found = {
        "caption_overlap": mean_of(overlap(hidden[0], hidden[1]).numpy()),
        "no_text_overlap": mean_of(overlap(hidden[0], hidden[2]).numpy()),
        "own_caption_higher": mean_of(higher.numpy()),
    }
    if regions is None:
        return found
    for condition, prefix in enumerate(PREFIXES):
        value_IX = np.full((len(score_ICRN), len(PATCH_MEASURES)), math.nan)
        for number, picture in regions.there:
            value_IX[number] = patch_measures(score_ICRN[number, condition, 0], picture)
        found |= {f"{prefix}{name}": mean_of(value_I) for name, value_I in zip(PATCH_MEASURES, value_IX.T, strict=True)}
    own, other = found["named_over_unnamed"], found["other_named_over_unnamed"]
    found["named_over_unnamed_gain"] = Mean(own.sum_I - other.sum_I, own.count_I)
    if score_ICRN.shape[2] > 1:
        found |= phrase_means(score_ICRN[:, :, 1:], regions, PREFIXES)
    return found


def gain_chance(found: dict[str, Mean]) -> dict[str, float]:
    """`chance_gain`: what `named_over_unnamed_gain` of scores that know nothing exceeds in one of forty sets of so many pictures,
    two standard errors of its mean; nothing where fewer than two pictures count.

    Args:
        found: what `means` gives.
    """
    gain = found.get("named_over_unnamed_gain")
    if gain is None or gain.count_I.sum() < 2:
        return {}
    gain_I = gain.sum_I[gain.count_I > 0]
    return {"chance_gain": 2 * float(gain_I.std(ddof=1)) / math.sqrt(len(gain_I))}


def numbers(score_ICRN: Tensor, regions: Regions | None, masking: MaskingConfig) -> dict[str, float]:
    """Every number without intervals, as a validation writes them; what no picture has is left out."""
    host = score_ICRN.float().cpu()
    found = means(host.numpy(), regions, masking)
    values = {name: mean.value for name, mean in found.items() if mean.value is not None}
    return values | gain_chance(found) | attending(host[:, 0, 0], host[:, 1, 0], masking)


def intervals(score_ICRN: Tensor, found: dict[str, Mean], masking: MaskingConfig, seed: int = 0) -> dict[str, float]:
    """NAME_low and NAME_high, 95 % over resampled pictures, of all means that two pictures at least count for, and of
    position_overlap."""
    hidden_IN = hidden_sets(score_ICRN[:, 0, 0].float().cpu(), masking)
    drawn = []
    for times_RI in resampled(len(hidden_IN), seed):
        drawn.append(position_overlap(hidden_IN, torch.from_numpy(times_RI)).numpy())
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975]).tolist()
    return mean_intervals(found, seed) | {"position_overlap_low": low, "position_overlap_high": high}
