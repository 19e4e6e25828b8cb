"""Do the words of a phrase point at what it names? Legend: I pictures, C conditions, Q phrases, N patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sycoca_ds.eval.masking.finding import chance_iou, pointing, word_iou
from sycoca_ds.eval.regions.patches import Regions
from sycoca_ds.eval.stats.means import Mean

PHRASE_MEASURES = ("pointing", "word_iou")


def phrase_means(score_ICQN: np.ndarray, regions: Regions, prefixes: Sequence[str]) -> dict[str, Mean]:
    """`PHRASE_MEASURES`, means over all phrases of all pictures, under each condition and of scores that know nothing (`chance_`).

    Args:
        score_ICQN: what each phrase's words give each patch. prefixes: of the C conditions' numbers.
    """
    count_I = np.zeros(len(score_ICQN))
    for number, picture in regions.there:
        count_I[number] = len(picture.phrases)
    found = {}
    for name, measure, chance in (
        ("pointing", pointing, lambda region_N: float(region_N.mean())),
        ("word_iou", word_iou, lambda region_N: chance_iou(len(region_N), int(region_N.sum()))),
    ):
        sum_CI = np.zeros((len(prefixes) + 1, len(score_ICQN)))
        for number, picture in regions.there:
            for phrase, of in enumerate(picture.phrases):
                for condition in range(len(prefixes)):
                    sum_CI[condition, number] += measure(score_ICQN[number, condition, phrase], of.region_N)
                sum_CI[-1, number] += chance(of.region_N)
        names = [*(f"{prefix}{name}" for prefix in prefixes), f"chance_{name}"]
        found |= {name: Mean(sum_I, count_I) for name, sum_I in zip(names, sum_CI, strict=True)}
    return found
