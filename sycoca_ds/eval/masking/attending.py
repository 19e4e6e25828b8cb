"""Do the masks know the caption? Measures of attentive scores (paper eq. 7), as pure functions.

No loss trains the scores, so a run may hide the same patches whatever the caption says, or change them without any regard to what
it says, and no loss curve shows it. Each measure stands beside what chance gives. Legend: I pictures, N patches, K = hidden patches
of a picture.

| score | caption_ignored | own_caption_higher | position_bias |
|---|---|---|---|
| ignores the caption | 1 | 0.5 | as the pictures are |
| noise | 0 | 0.5 | 0 |
| of the place alone | 1 | 0.5 | 1 |
| finds exactly what is named, share a of a picture | 0 to 1 - a / r_h | 1 | 0 where objects lie anywhere |
| of an untrained model | 0.2 to 0.9 | 0.5 | 0.05 to 0.5 |

So two things are needed: the masks depend on the caption, and the own caption scores higher. The values are those of
`tests/sycoca_ds/eval/masking/test_attending.py`; docs/masking.md has what trained models gave.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sycoca_ds.config import MaskingConfig
from sycoca_ds.model.masking.patches import split_patches


def hidden_sets(score_IN: Tensor, masking: MaskingConfig) -> Tensor:
    """(I, N) bool: what scores hide. The best-matching `high_ratio` from TG-MIM, or, without it, the worst-matching `low_ratio`
    from captioning."""
    if masking.mim == "none" and masking.low_ratio > 0:
        return split_patches(score_IN, masking.low_ratio, "lowest")[1]
    return split_patches(score_IN, masking.high_ratio, "highest")[1]


def overlap(one_IN: Tensor, another_IN: Tensor) -> Tensor:
    """(I,) float64: share of each picture's hidden patches that another hidden set of as many holds as well."""
    return (one_IN & another_IN).sum(1).double() / one_IN.sum(1)


def scores_higher(own_IN: Tensor, other_IN: Tensor, hidden: int) -> Tensor:
    """(I,) float64: 1 where a picture's `hidden` best patches score higher on the mean under its own caption than under the other
    one, ties half."""
    own_top, other_top = (score_IN.double().topk(hidden, dim=1).values.mean(1) for score_IN in (own_IN, other_IN))
    return (own_top > other_top).double() + 0.5 * (own_top == other_top)


def position_overlap(hidden_IN: Tensor, times_RI: Tensor) -> Tensor:
    """(R,) float64: share of a picture's hidden patches that are hidden in another picture as well, mean over all pairs; 1 for a
    single picture.

    Args:
        times_RI: how often each picture counts, once or as resampled R times; a picture makes no pair with itself.
    """
    times_RI, hidden_IN = times_RI.double(), hidden_IN.double()
    hidden, itself_R = hidden_IN[0].sum(), times_RI.square().sum(1)
    shared_R = (times_RI @ hidden_IN).square().sum(
        1
    ) - itself_R * hidden  # a patch of c pictures is shared by c (c - 1) ordered pairs
    pairs_R = times_RI.sum(1).square() - itself_R
    return torch.where(pairs_R > 0, shared_R / (pairs_R * hidden), 1.0)


def attending(own_IN: Tensor, other_IN: Tensor, masking: MaskingConfig) -> dict[str, float]:
    """The measures of one set of pictures.

    Args:
        own_IN, other_IN: scores of each picture's patches under its own caption and under one of another picture.
        masking: says which patches are hidden (`hidden_sets`).

    Returns:
        caption_overlap: share of a picture's hidden patches that the other caption hides as well, mean over pictures.
        caption_ignored: the same, 0 at chance, 1 where the caption changes nothing; below 0: it changes more than chance.
        position_overlap: share of a picture's hidden patches that are hidden in another picture as well, each under its own
            caption, mean over all pairs.
        position_bias: the same, 0 at chance, 1 where all pictures have the same mask.
        chance_overlap: what two independent masks of K patches share, K / N.
        own_caption_higher: share of pictures whose K best patches score higher under their own caption than under the other one,
            ties half; 0.5 for scores that know nothing of it, however much they change.
        chance_higher: what coin tosses exceed in one of forty sets of so many pictures, half and two standard deviations.
        score_std, score_range: standard deviation of the scores over a picture's patches, and highest less lowest, means over
            pictures under their own captions.
    """
    own, other = hidden_sets(own_IN, masking), hidden_sets(other_IN, masking)
    hidden = int(own[0].sum())
    chance = hidden / own.shape[1]
    caption, position = overlap(own, other).mean().item(), position_overlap(own, torch.ones(1, len(own))).item()
    return {
        "caption_overlap": caption,
        "caption_ignored": (caption - chance) / (1 - chance),
        "position_overlap": position,
        "position_bias": (position - chance) / (1 - chance),
        "chance_overlap": chance,
        "chance_higher": 0.5 + 1 / math.sqrt(len(own)),
        "own_caption_higher": scores_higher(own_IN, other_IN, hidden).mean().item(),
        "score_std": own_IN.float().std(dim=1, unbiased=False).mean().item(),
        "score_range": (own_IN.amax(1) - own_IN.amin(1)).float().mean().item(),
    }
