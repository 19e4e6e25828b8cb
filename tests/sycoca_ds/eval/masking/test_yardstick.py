"""The yardstick calibrated: scores that know everything, nothing, or only what stands out, against what each has to come to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sycoca_ds.config import MaskingConfig
from sycoca_ds.eval.masking.attending import attending, position_overlap
from sycoca_ds.eval.masking.yardstick import Mean, intervals, mean_of, means, numbers
from sycoca_ds.eval.regions.patches import BACKGROUND, NAMED, NAMED_BACKGROUND, NONE, UNNAMED, PatchPhrase, PictureRegions, Regions
from sycoca_ds.eval.stats.intervals import bootstrap_interval

PATCHES, PICTURES = 36, 300
MASKING = MaskingConfig(high_ratio=0.2)


def drawn_regions(seed: int = 0, background_named: float = 0.0) -> Regions:
    """Two named objects, two unnamed ones and a strip of nothing in each picture, anywhere; a phrase each for the named ones."""
    random, pictures = np.random.default_rng(seed), []
    for _ in range(PICTURES):
        order, kind = random.permutation(PATCHES), np.full(PATCHES, BACKGROUND, np.int8)
        if random.random() < background_named:
            kind[:] = NAMED_BACKGROUND
        things = np.split(order[:14], [3, 8, 10])
        for thing, of in zip(things, (NAMED, NAMED, UNNAMED, UNNAMED), strict=True):
            kind[thing] = of
        kind[order[14:17]] = NONE
        phrases = tuple(PatchPhrase(np.isin(np.arange(PATCHES), thing), (n + 1,)) for n, thing in enumerate(things[:2]))
        pictures.append(PictureRegions(kind, phrases))
    return Regions("drawn", tuple(pictures), {})


REGIONS = drawn_regions()
NAMED_IN = np.stack([picture.has(NAMED) for picture in REGIONS.pictures]).astype(np.float32)
OBJECTS_IN = np.stack([picture.has(NAMED, UNNAMED) for picture in REGIONS.pictures]).astype(np.float32)
PHRASES_IQN = np.stack([[phrase.region_N for phrase in picture.phrases] for picture in REGIONS.pictures]).astype(np.float32)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape or (PICTURES, PATCHES), dtype=np.float32)


def scores(own: np.ndarray, other: np.ndarray, none: np.ndarray, phrases: list[np.ndarray]) -> torch.Tensor:
    """(I, C, 1 + Q, N) from masking scores (I, N) and phrase scores (I, Q, N) of the three conditions."""
    rows = [np.concatenate([mask[:, None], of], axis=1) for mask, of in zip((own, other, none), phrases, strict=True)]
    return torch.from_numpy(np.stack(rows, axis=1))


def any_of(kind: int, seed: int) -> np.ndarray:
    """As another picture's caption that names objects here by accident: each object, named or not, by a coin."""
    random, found = np.random.default_rng(seed), np.zeros((PICTURES, PATCHES), np.float32)
    for row, picture in enumerate(REGIONS.pictures):
        for region in (picture.phrases[0].region_N, picture.phrases[1].region_N, picture.has(UNNAMED)):
            found[row, region] = random.random() < 0.5
    return found


def two(score: np.ndarray) -> np.ndarray:
    return np.stack([score, score], axis=1)


ORACLE = scores(NAMED_IN, any_of(NAMED, 1), noise(5) * 0, [PHRASES_IQN, two(any_of(NAMED, 1)), two(noise(5) * 0)])
NOISE = scores(
    noise(1),
    noise(2),
    noise(3),
    [noise(11, PICTURES, 2, PATCHES), noise(12, PICTURES, 2, PATCHES), noise(13, PICTURES, 2, PATCHES)],
)
STANDS_OUT = scores(*[OBJECTS_IN + 0.1 * noise(1)] * 3, [two(OBJECTS_IN + 0.1 * noise(1))] * 3)
"""Finds objects, the same whatever the text: what fooled the earlier measure, whose AUC over the background it makes 1."""


def near(value: float, abs: float = 0.04) -> pytest.approx:
    """Four standard errors of means over 300 pictures."""
    return pytest.approx(value, abs=abs)


def test_an_oracle_reaches_everything() -> None:
    found = numbers(ORACLE, REGIONS, MASKING)
    for name in ("named_over_unnamed", "named_over_rest", "pointing", "word_iou"):
        assert found[name] == 1.0, name
    assert found["own_caption_higher"] == near(0.75, 0.1) and found["caption_ignored"] < 0.8
    assert found["objects_over_background"] == pytest.approx(8 / 14 + 6 / 14 / 2), "named objects above, unnamed ones level with it"


def test_another_pictures_caption_takes_it_back_to_a_half() -> None:
    found = numbers(ORACLE, REGIONS, MASKING)
    assert found["other_named_over_unnamed"] == near(0.5, 0.07)
    assert found["named_over_unnamed_gain"] == near(0.5, 0.07)
    assert found["named_over_unnamed_gain"] == pytest.approx(found["named_over_unnamed"] - found["other_named_over_unnamed"])
    assert found["no_text_named_over_unnamed"] == 0.5, "scores that are all the same: ties, half each"
    for name in ("pointing", "word_iou"):
        assert found[f"no_text_{name}"] == pytest.approx(found[f"chance_{name}"]), "and their expectation over ties is chance"


def test_what_stands_out_is_found_and_unmasked() -> None:
    found = numbers(STANDS_OUT, REGIONS, MASKING)
    assert found["objects_over_background"] == 1.0 and found["named_over_rest"] > 0.8, "this looks like knowledge"
    assert found["named_over_unnamed"] == near(0.5) and found["named_over_unnamed_gain"] == 0.0
    assert found["other_named_over_rest"] == found["named_over_rest"], "which is what the control says"
    assert found["caption_ignored"] == 1.0 and found["own_caption_higher"] == 0.5
    assert found["pointing"] > 1.5 * found["chance_pointing"] and found["pointing"] == found["other_pointing"]


def test_noise_is_chance_everywhere() -> None:
    found = numbers(NOISE, REGIONS, MASKING)
    for prefix in ("", "other_", "no_text_"):
        for name in ("named_over_unnamed", "named_over_rest", "objects_over_background"):
            assert found[f"{prefix}{name}"] == near(0.5)
        for name in ("pointing", "word_iou"):
            assert found[f"{prefix}{name}"] == near(found[f"chance_{name}"], 0.06)
    assert found["caption_ignored"] == near(0.0, 0.05) and found["no_text_overlap"] == near(found["chance_overlap"])
    assert found["chance_pointing"] == pytest.approx(np.mean([3 / 36, 5 / 36]))


def test_intervals_hold_the_truth_and_are_those_of_a_slow_bootstrap() -> None:
    names = ("named_over_unnamed", "other_objects_over_background", "named_over_unnamed_gain", "pointing", "caption_overlap")
    found = {name: mean for name, mean in means(NOISE.numpy(), REGIONS, MASKING).items() if name in names}
    bounds = intervals(NOISE, found, MASKING, seed=4)
    for name in names:
        assert bounds[f"{name}_low"] < found[name].value < bounds[f"{name}_high"], name
    assert bounds["named_over_unnamed_low"] < 0.5 < bounds["named_over_unnamed_high"]
    assert bounds["position_overlap_low"] < attending(NOISE[:, 0, 0], NOISE[:, 1, 0], MASKING)["position_overlap"]
    mean = found["pointing"]
    slow = bootstrap_interval(lambda drawn: mean.sum_I[drawn].sum() / mean.count_I[drawn].sum(), PICTURES, seed=9)
    assert (bounds["pointing_low"], bounds["pointing_high"]) == pytest.approx(slow, abs=0.01), "of other draws"
    assert bounds == intervals(NOISE, found, MASKING, seed=4) != intervals(NOISE, found, MASKING, seed=5)


def test_a_resampled_position_overlap_makes_no_pair_of_a_picture_with_itself() -> None:
    hidden = torch.stack([torch.isin(torch.arange(PATCHES), row.argsort()[:9]) for row in torch.from_numpy(noise(7, 9, PATCHES))])
    drawn = [0, 0, 0, 3, 5, 5, 8]
    pairs = [
        (hidden[a] & hidden[b]).sum().item() / 9 for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i != j and a != b
    ]
    assert position_overlap(hidden, torch.bincount(torch.tensor(drawn), minlength=9)[None]).item() == pytest.approx(np.mean(pairs))


def test_a_background_that_is_named_is_no_mistake() -> None:
    """A score that finds all that is named, the background included, is still an oracle over the rest."""
    regions = drawn_regions(seed=2, background_named=0.5)
    own = np.stack([picture.has(NAMED, NAMED_BACKGROUND) for picture in regions.pictures]).astype(np.float32)
    found = numbers(scores(own, own, own, [two(own)] * 3), regions, MASKING)
    assert found["named_over_rest"] == found["named_over_unnamed"] == 1.0
    assert found["objects_over_background"] < 0.7


def test_pictures_without_what_is_compared_do_not_count_and_none_is_no_number() -> None:
    only_named = PictureRegions(np.array([NAMED] * 4 + [BACKGROUND] * 4, np.int8), ())
    both = PictureRegions(np.array([NAMED, NAMED, UNNAMED, BACKGROUND] * 2, np.int8), ())
    score = torch.arange(8.0).flip(0).expand(3, 3, 1, 8)
    found = means(score.numpy(), Regions("x", (only_named, both, None), {}), MASKING)
    assert found["named_over_unnamed"].count_I.tolist() == [0, 1, 0] and found["named_over_rest"].count_I.tolist() == [1, 1, 0]
    bounds = intervals(score, found, MASKING)
    assert "named_over_unnamed_low" not in bounds and bounds["named_over_rest_high"] == 1.0, "one picture, two"
    written = numbers(score, Regions("x", (only_named, None, None), {}), MASKING)
    assert "named_over_unnamed" not in written and "pointing" not in written and written["named_over_rest"] == 1.0
    assert "named_over_rest" not in numbers(score, None, MASKING)
    assert mean_of(np.array([np.nan, 0.25])).value == 0.25 and Mean(np.zeros(2), np.zeros(2)).value is None
