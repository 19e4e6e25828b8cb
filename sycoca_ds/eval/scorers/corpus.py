"""Corpus scores from summed statistics: BLEU and METEOR of any choice of images, without their captions.

Neither is a mean over images. What is summed over images is counts, and the score is made from the sums, as the official
scorers do; so a resample, or a corpus half of whose captions come from another model, is scored by adding other rows.
Legend: I images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

BLEU = 10
"""Counts of an image: length of the caption, of its closest reference, guessed and right runs of 1 to 4 words."""
METEOR = 23
"""Numbers of the jar's SCORE line: lengths of caption and reference, function words of both; for the stages exact, stem, synonym
and paraphrase the matched content words of both and function words of both; chunks, matched words of both."""
ALPHA, BETA, GAMMA, DELTA, STAGES = 0.85, 0.2, 0.6, 0.75, (1.0, 0.6, 0.8, 0.6)
"""METEOR 1.5's parameters for English (meteor-1.5.jar, `-l en`; Denkowski and Lavie 2014)."""


def bleu_statistics(reference_table: Mapping[str, list[str]], hypothesis_table: Mapping[str, list[str]]) -> np.ndarray:
    """(I, BLEU) float64, by pycocoevalcap's own counting."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for image_id, references in reference_table.items():
        found = cook_test(hypothesis_table[image_id][0], cook_refs(references), eff="closest")
        rows.append([found["testlen"], found["reflen"], *found["guess"], *found["correct"]])
    return np.array(rows, dtype=np.float64)


def bleu_of(sum_X: np.ndarray, words: int) -> np.ndarray:
    """BLEU of runs up to `words` words, 0 to 1, from (..., BLEU) sums (bleu_scorer.py, compute_score)."""
    small, tiny = 1e-9, 1e-15
    share = np.prod([(sum_X[..., 6 + k] + tiny) / (sum_X[..., 2 + k] + small) for k in range(words)], axis=0) ** (1 / words)
    ratio = (sum_X[..., 0] + tiny) / (sum_X[..., 1] + small)
    return share * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)


def meteor_rows(statistics_IX: np.ndarray) -> np.ndarray:
    """(I, METEOR) as they are summed, from those of SCORE lines: a caption that is the reference word for word counts no
    chunk, as in the jar's own sums."""
    rows_IX = np.array(statistics_IX, dtype=np.float64)
    rows_IX[_whole(rows_IX), 20] = 0.0
    return rows_IX


def _whole(sum_X: np.ndarray) -> np.ndarray:
    return (sum_X[..., 20] == 1) & (sum_X[..., 21:23] == sum_X[..., 0:2]).all(-1)


def meteor_of(sum_X: np.ndarray) -> np.ndarray:
    """METEOR, 0 to 1, from (..., METEOR) sums of `meteor_rows`."""
    length, matches = sum_X[..., 0:2], sum_X[..., 21:23]
    function = sum_X[..., 2:4]
    content_S2, function_S2 = np.split(sum_X[..., 4:20].reshape(*sum_X.shape[:-1], 4, 4), 2, axis=-1)
    weighted = (np.array(STAGES)[:, None] * (DELTA * content_S2 + (1 - DELTA) * function_S2)).sum(-2)
    chunks, matched = sum_X[..., 20], matches.mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / (DELTA * (length - function) + (1 - DELTA) * function), -1, 0)
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        score = mean * (1 - GAMMA * (chunks / matched) ** BETA)
    return np.where(matched > 0, np.nan_to_num(score), 0.0)
