"""Wrong captions, the gap and its interval, requirements."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.reconstruction import gap_metrics, relative_gap, wrong_captions
from sycoca_ds.eval.requirements import check_names, judge, parse_requirement


def check_wrong(captions):
    other = wrong_captions(captions)
    assert sorted(other.tolist()) == list(range(len(captions)))
    for image, source in enumerate(other):
        own = {" ".join(caption.lower().split()) for caption in captions[image]}
        assert source != image
        assert " ".join(captions[source][0].lower().split()) not in own
    return other


def test_wrong_captions_roll_where_all_differ():
    assert check_wrong([["a"], ["b"], ["c"]]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("seed", range(20))
def test_wrong_captions_with_repeats_and_several_captions(seed):
    rng = np.random.default_rng(seed)
    captions = [[f"Scene  {rng.integers(6)}", *(f"scene {rng.integers(6)}" for _ in range(rng.integers(0, 2)))] for _ in range(25)]
    first = check_wrong(captions)
    assert first.tolist() == wrong_captions(captions).tolist()


def test_no_wrong_caption_is_an_error():
    with pytest.raises(UserError, match="nearly all captions of the data set are equal"):
        wrong_captions([["a"], ["A "], ["a"], ["b"]])
    with pytest.raises(UserError, match="at least 2 images"):
        wrong_captions([["a"]])


def test_gap_by_hand():
    assert relative_gap(0.19, 0.2) == pytest.approx(5.0)
    numbers = gap_metrics(np.array([0.1, 0.3, 0.2]), np.array([0.2, 0.2, 0.4]))
    assert numbers["own_l1"] == pytest.approx(0.2) and numbers["other_l1"] == pytest.approx(0.8 / 3)
    assert numbers["gap"] == pytest.approx(25.0) and numbers["better_share"] == pytest.approx(200 / 3)


def test_interval_equals_the_normal_approximation_and_repeats():
    """For many images the bootstrap interval of a ratio of means is the delta method's."""
    rng = np.random.default_rng(1)
    other = rng.uniform(0.5, 1.5, 4000)
    own = 0.9 * other + rng.normal(0, 0.05, 4000)
    numbers = gap_metrics(own, other, seed=4)
    ratio = own.mean() / other.mean()
    half = 100 * 1.96 * np.std(own - ratio * other) / other.mean() / np.sqrt(4000)
    assert numbers["gap_low"] == pytest.approx(numbers["gap"] - half, abs=0.1 * half)
    assert numbers["gap_high"] == pytest.approx(numbers["gap"] + half, abs=0.1 * half)
    assert numbers == gap_metrics(own, other, seed=4)
    assert numbers != gap_metrics(own, other, seed=5)


def test_gap_needs_pairs():
    with pytest.raises(ValueError, match="equally long"):
        gap_metrics(np.ones(3), np.ones(2))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("retrieval.i2t_r1>=40", ("retrieval", "i2t_r1", ">=", 40.0)),
        (" captioning.cider > 1.0 ", ("captioning", "cider", ">", 1.0)),
        ("reconstruction.own_l1<=.5", ("reconstruction", "own_l1", "<=", 0.5)),
        ("reconstruction.gap<-1e-2", ("reconstruction", "gap", "<", -0.01)),
        ("retrieval.mTR>=7.", ("retrieval", "mTR", ">=", 7.0)),
    ],
)
def test_requirements_are_parsed(text, parts):
    found = parse_requirement(text)
    assert (found.task, found.metric, found.comparison, found.bound) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "retrieval>=4",
        "retrieval.i2t_r1=40",
        "retrieval.i2t_r1>=",
        "retrieval.i2t_r1>=x",
        "a.b>=1 c.d>=2",
        "a.b>=nan",
        "a.b>=1>=2",
    ],
)
def test_bad_requirements_show_the_form(text):
    with pytest.raises(UserError, match="expected TASK.METRIC>=NUMBER"):
        parse_requirement(text)


def test_judging():
    asked = [parse_requirement(text) for text in ("a.x>=2", "a.x>2", "a.y>=0", "a.z>=0", "b.x<=1", "a.nan>=0")]
    verdicts = judge(asked, {"a": {"x": 2.0, "y": None, "nan": float("nan")}, "b": {"x": 1.0}})
    assert [verdict.passed for verdict in verdicts] == [True, False, False, False, True, False]
    assert str(verdicts[0]) == "pass  a.x >= 2  measured 2"
    assert str(verdicts[2]) == "SHORT  a.y >= 0  measured not measured"


def test_names_are_checked_before_work():
    metrics = {"retrieval": ("i2t_r1",), "captioning": ("cider",)}
    check_names([parse_requirement("retrieval.i2t_r1>=1")], metrics, ["retrieval"])
    for text, message in (
        ("retrival.i2t_r1>=1", "no task 'retrival'; there are retrieval, captioning"),
        ("retrieval.r1>=1", "no number 'r1'; it has i2t_r1"),
        ("captioning.cider>=1", "not among --tasks retrieval"),
    ):
        with pytest.raises(UserError, match=message):
            check_names([parse_requirement(text)], metrics, ["retrieval"])
