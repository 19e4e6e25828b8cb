"""Requirements: how they are written, judged, and named wrongly."""

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.requirements import check_names, judge, parse_requirement


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
