"""What is said of the masks, on numbers of scores of which it is known what they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sycoca_ds.config import MaskingConfig
from sycoca_ds.eval.masking.verdict import knows, told, warmed_up, warning
from sycoca_ds.eval.masking.yardstick import gain_chance, mean_of, numbers
from sycoca_ds.eval.regions.patches import BACKGROUND, NAMED, NAMED_BACKGROUND, UNNAMED, PictureRegions, Regions

PICTURES, PATCHES = 200, 36
MASKING = MaskingConfig()
KIND_IN = np.full((PICTURES, PATCHES), BACKGROUND, np.int8)
for _row, _kind in enumerate(KIND_IN):
    _order = np.random.default_rng(_row).permutation(PATCHES)
    _kind[_order[:6]], _kind[_order[6:12]] = NAMED, UNNAMED
REGIONS = Regions("drawn", tuple(PictureRegions(kind_N, ()) for kind_N in KIND_IN), {})
ALL_NAMED = Regions(
    "drawn",
    tuple(PictureRegions(np.where(kind_N == BACKGROUND, NAMED_BACKGROUND, NAMED).astype(np.int8), ()) for kind_N in KIND_IN),
    {},
)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((PICTURES, PATCHES), dtype=np.float32)


NAMES, OBJECTS = ((np.isin(KIND_IN, kinds)).astype(np.float32) for kinds in ((NAMED,), (NAMED, UNNAMED)))
BY_LUCK = OBJECTS * (np.random.default_rng(0).random((PICTURES, 1)) + 0.1 * noise(7))
SCORES = {
    "finds what is named": (NAMES + 0.5 * noise(1), BY_LUCK),
    "higher under the own caption, anywhere": (noise(1) + 1, noise(2)),
    "what is named stands out whatever the caption says": (NAMES + 0.5 * noise(1), NAMES + 0.5 * noise(2)),
    "noise": (noise(1), noise(2)),
    "the picture alone": (OBJECTS + noise(1), OBJECTS + noise(1)),
    "mostly the picture": (OBJECTS + noise(1) + 0.01, OBJECTS + noise(1) + 0.2 * noise(2) - 0.1),
}


def found(what: str, regions: Regions | None) -> dict[str, float]:
    own, other = SCORES[what]
    return numbers(torch.from_numpy(np.stack([own, other, noise(9)], axis=1)[:, :, None]), regions, MASKING)


def test_what_the_gain_of_scores_that_know_nothing_exceeds_once_in_forty_times() -> None:
    """In each of 2,000 sets of 50 pictures: chances of six patches above six others, under two captions."""
    random, above = np.random.default_rng(3), 0
    for _ in range(2000):
        named, unnamed = random.random((2, 2, 50, 6))
        own_I, other_I = (named[..., None] > unnamed[..., None, :]).mean(axis=(2, 3))
        gain = mean_of(own_I - other_I)
        chance = gain_chance({"named_over_unnamed_gain": gain})["chance_gain"]
        assert chance == pytest.approx(2 * np.std(own_I - other_I, ddof=1) / 50**0.5)
        above += gain.value > chance
    assert above / 2000 == pytest.approx(0.0255, abs=0.011), "Student's t of 49 degrees; three standard errors"


def test_regions_decide_where_they_are_known() -> None:
    """A contrast that works, and objects that stand out, look like knowledge to what needs no regions or is half the measure."""
    assert {what for what in SCORES if knows(found(what, REGIONS))} == {"finds what is named"}
    without = {what for what in SCORES if knows(found(what, None))}
    assert {"higher under the own caption, anywhere", "mostly the picture"} < without
    standing = found("what is named stands out whatever the caption says", REGIONS)
    assert standing["named_over_unnamed"] > 0.9 and standing["other_named_over_unnamed"] > 0.9


def test_the_warning_says_what_is_missing() -> None:
    assert warning(found("finds what is named", REGIONS)) is None and warning(found("mostly the picture", None)) is None
    standing = warning(found("what is named stands out whatever the caption says", REGIONS))
    assert standing.startswith(
        "the masks do not know the caption: a patch of an object that the caption names scores above one of "
    )
    assert "leaves out in 100.0 % of cases, under another picture's caption in 100.0 % (chance 50 %)." in standing
    same = warning(found("the picture alone", None))
    assert "they ignore it: another picture's caption hides 100.0 % of the same patches (chance 50 %)" in same
    assert same.endswith("see docs/masking.md")
    values = found("noise", None) | {"own_caption_higher": 0.54, "caption_overlap": 0.501}
    assert values["chance_higher"] == pytest.approx(0.5 + 1 / 200**0.5), "two standard deviations of 200 coin tosses"
    told_of = warning(values)
    assert "in 54 % of pictures (chance 50 %), though another one hides only 50.1 % of the same" in told_of
    assert warning(values | {"own_caption_higher": 0.571}) is None


@pytest.mark.parametrize(
    "what, regions, ends",
    [
        ("finds what is named", REGIONS, "So the scores know which objects the caption names."),
        ("noise", REGIONS, "So the scores do not know which objects the caption names."),
        ("the picture alone", ALL_NAMED, "So the caption decides nothing."),
        ("noise", ALL_NAMED, "The own caption scores no higher than the other one, so what changes changes at random."),
        ("mostly the picture", ALL_NAMED, "So the picture decides what is hidden, more than its caption does."),
        ("higher under the own caption, anywhere", None, "So what is hidden depends on the caption."),
    ],
)
def test_what_a_reader_is_told(what: str, regions: Regions | None, ends: str) -> None:
    values = found(what, regions)
    said = told(values | {"untrained_caption_overlap": 0.8305}, regions)
    same = f"Under another picture's caption {100 * values['caption_overlap']:.1f} % of the hidden patches stay the same"
    assert said.startswith(f"{same}; chance is 50 %, with untrained weights 83.0 %. ") and said.endswith(ends)
    named = 100 * values.get("named_over_unnamed", 0.0)
    assert (f"one of an object that it leaves out in {named:.1f} % of cases" in said) == (regions is REGIONS)
    assert "phrase's words" not in said, "these pictures have none"
    assert ("cannot be asked here: the captions leave out no object that their pictures show." in said) == (regions is ALL_NAMED)
    assert ("was not asked: that takes --regions." in said) == (regions is None)


def test_what_ends_a_warm_up() -> None:
    """By default the best measure there is; with regions, never what only stands out."""
    good, standing = found("finds what is named", REGIONS), found("what is named stands out whatever the caption says", REGIONS)
    assert warmed_up(good, 0.9) == warmed_up(good, 0.9, "named_over_unnamed") == "named_over_unnamed is 1.000"
    assert warmed_up(standing, 0.6) is None and standing["named_over_unnamed"] == 1.0
    higher = found("higher under the own caption, anywhere", REGIONS)
    assert warmed_up(higher, 0.6) is None
    assert warmed_up(higher, 0.6, "own_caption_higher") == "own_caption_higher is 1.000"
    for regions in (None, ALL_NAMED):
        values = found("higher under the own caption, anywhere", regions)
        assert warmed_up(values, 0.6) == "own_caption_higher is 1.000"
        assert warmed_up(values, 0.5, "named_over_unnamed") is None
        assert warmed_up({**values, "caption_ignored": 1.0}, 0.6) is None, "a last bit that is always higher hides nothing else"
        assert warmed_up({**values, "own_caption_higher": 0.53, "chance_higher": 0.55}, 0.52) is None, "coin tosses"
    for metric in (None, "named_over_unnamed", "own_caption_higher"):
        assert warmed_up({}, 0.5, metric) is None, "ranks other than 0 have no numbers"


def test_a_single_picture_tells_nothing_of_objects() -> None:
    one = Regions("drawn", (REGIONS.pictures[0], *[None] * (PICTURES - 1)), {})
    values = found("finds what is named", one)
    assert values["named_over_unnamed"] == 1.0 and "chance_gain" not in values
    assert "cannot be asked here: too few pictures show both." in told(values, one)
