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

from torch import Tensor

from sycoca_ds.config import MaskingConfig, hidden_count
from sycoca_ds.model.masking import split_patches

IGNORED = 0.95
"""`caption_ignored` above which a run is told that its masks ignore the caption: another caption changes less than a
twentieth of what chance would. A score that finds exactly what is named, and ranks all other patches the same way whatever the
caption, comes to 1 - a / r_h, where a is the share of the picture that captions name: it stays below from a fortieth on."""


def attending(own_IN: Tensor, other_IN: Tensor, masking: MaskingConfig) -> dict[str, float]:
    """The measures of one set of pictures.

    Args:
        own_IN, other_IN: scores of each picture's patches under its own caption and under one of another picture.
        masking: says which patches are hidden: the best-matching `high_ratio` from TG-MIM, or, without it, the worst-matching
            `low_ratio` from captioning.

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
    images, patches = own_IN.shape
    if masking.mim == "none":
        ratio, hide = masking.low_ratio, "lowest"
    else:
        ratio, hide = masking.high_ratio, "highest"
    hidden = hidden_count(patches, ratio)
    own, other = (split_patches(score_IN, ratio, hide)[1].double() for score_IN in (own_IN, other_IN))
    chance = hidden / patches
    caption = ((own * other).sum(1) / hidden).mean().item()
    often_N = own.sum(0)  # a patch hidden in c pictures is shared by c (c - 1) ordered pairs
    pairs = images * (images - 1)
    own_top, other_top = (score_IN.double().topk(hidden, dim=1).values.mean(1) for score_IN in (own_IN, other_IN))
    position = ((often_N * (often_N - 1)).sum() / (hidden * pairs)).item() if pairs else 1.0
    return {
        "caption_overlap": caption,
        "caption_ignored": (caption - chance) / (1 - chance),
        "position_overlap": position,
        "position_bias": (position - chance) / (1 - chance),
        "chance_overlap": chance,
        "chance_higher": 0.5 + 1 / math.sqrt(images),
        "own_caption_higher": ((own_top > other_top).double() + 0.5 * (own_top == other_top)).mean().item(),
        "score_std": own_IN.float().std(dim=1, unbiased=False).mean().item(),
        "score_range": (own_IN.amax(1) - own_IN.amin(1)).float().mean().item(),
    }


def warning(numbers: dict[str, float]) -> str | None:
    """What to tell a user whose masks, of which `attending` gave these numbers, do not know the caption; None if they do."""
    same, chance, higher = (100 * numbers[name] for name in ("caption_overlap", "chance_overlap", "own_caption_higher"))
    if numbers["caption_ignored"] > IGNORED:
        what = f"they ignore it: another picture's caption hides {same:.1f} % of the same patches (chance {chance:.0f} %)"
    elif numbers["own_caption_higher"] <= numbers["chance_higher"]:
        what = (
            f"a picture's patches score higher under its own caption than under another one in {higher:.0f} % of pictures (chance "
            f"50 %), though another one hides only {same:.1f} % of the same patches"
        )
    else:
        return None
    return f"the masks do not know the caption: {what}. What is hidden has nothing to do with what it says; see docs/masking.md"
