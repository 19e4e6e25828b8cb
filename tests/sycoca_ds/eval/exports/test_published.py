"""Published numbers: open_clip's table, DataComp's own results, ours."""

import json

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.exports.published import mean, read_beside
from sycoca_ds.eval.exports.tasklist import LISTED

OPEN_CLIP = """\
name,pretrained,params (M),FLOPs (B),Average perf. on 38 datasets,ImageNet 1k,Caltech-101,Not one of them,Flickr
coca_ViT-L-14,laion2b_s13b_b90k,638.45,214.52,0.6327,0.7561,0.9430,0.1,0.8134
coca_ViT-B-32,laion2b_s13b_b90k,253.56,33.34,0.5533,0.6331,0.9078,0.1,
coca_ViT-B-32,other,253.56,33.34,0.5533,0.5,0.5,0.1,0.5
"""
COCA_L14 = (
    "0.7561 0.9430 0.9722 0.8318 0.3781 0.2446 0.2551 0.6239 0.6752 0.3590 0.9038 0.5624 0.6453 0.6798 0.5336 0.3540 0.8812 0.1899 "
    "0.7790 0.6405 0.7643 0.9402 0.8096 0.5500 0.6634 0.6878 0.9276 0.9894 0.7406 0.6237 0.8134 0.5428 0.4739 0.1375 0.4268 0.1932 "
    "0.6542 0.8960"
)
"""coca_ViT-L-14,laion2b_s13b_b90k of open_clip's docs/openclip_results.csv (89fb801), whose columns have the order of LISTED."""


def test_a_row_of_open_clips_table(tmp_path):
    (tmp_path / "a.csv").write_text(OPEN_CLIP)
    found = read_beside(f"{tmp_path}/a.csv,coca_ViT-L-14")
    assert found.name == "coca_ViT-L-14"
    assert found.percent == pytest.approx({"ImageNet 1k": 75.61, "Caltech-101": 94.30, "Flickr": 81.34})
    found = read_beside(f"{tmp_path}/a.csv,coca_ViT-B-32,laion2b_s13b_b90k")
    assert found.percent == pytest.approx({"ImageNet 1k": 63.31, "Caltech-101": 90.78}), "an empty cell is no number"


def test_results_of_datacomp_and_of_ours(tmp_path):
    lines = [
        {"key": "cifar10", "dataset": "CIFAR-10", "metrics": {"acc1": 0.4, "main_metric": 0.5}},
        {"key": "fairness/fairface", "dataset": "FairFace", "metrics": {"main_metric": None}},
    ]
    (tmp_path / "eval_results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_beside(f"{tmp_path}/eval_results.jsonl").percent == {"CIFAR-10": 50.0}
    (tmp_path / "a.json").write_text(json.dumps({"name": "runs/other", "numbers": {"CIFAR-10": 50.5, "mnist": 0.5}}))
    found = read_beside(f"{tmp_path}/a.json")
    assert found.name == "runs/other" and found.percent == {"CIFAR-10": 50.5, "MNIST": 0.5}, "above 1 somewhere: percent"
    small = {"name": "early", "average": 0.45, "sets": 2, "of": 38, "numbers": {"CIFAR-10": 0.5, "ImageNet 1k": 0.4}}
    (tmp_path / "datacomp.json").write_text(json.dumps(small))
    assert read_beside(f"{tmp_path}/datacomp.json").percent == small["numbers"], "ours is percent"


@pytest.mark.parametrize(
    ("name", "text", "row", "message"),
    [
        ("a.csv", OPEN_CLIP, "", "3 rows; name one as FILE,ROW, such as coca_ViT-L-14,laion2b_s13b_b90k"),
        ("a.csv", OPEN_CLIP, ",coca_ViT-B-32", "2 rows; name one as FILE,ROW, such as coca_ViT-B-32,laion2b"),
        ("a.csv", OPEN_CLIP, ",coca_ViT-L-16", "no row coca_ViT-L-16; did you mean coca_ViT-L-14"),
        ("a.csv", "name\n", "", "no row"),
        ("a.csv", "name,ImageNet 1k\na,x\n", "", "not as expected of .csv"),
        ("a.csv", "name,ImageNet 1k\na,120\n", "", "expected numbers from 0 to 100"),
        ("a.csv", "name,ImageNet 1k\na,nan\n", "", "expected numbers from 0 to 100"),
        ("a.csv", "name,Imagenet\na,1\n", "", "under names such as ImageNet 1k"),
        ("a.json", "[", "", "not as expected of .json"),
        ("a.json", "[1]", "", "not as expected of .json"),
        ("a.json", "{}", ",x", "only a .csv has rows"),
        ("a.jsonl", "{}\n", "", "not as expected of .jsonl"),
        ("b/a.csv", None, "", "no such file"),
    ],
)
def test_what_is_no_table(tmp_path, name, text, row, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_beside(f"{tmp_path / name}{row}")
    assert message in str(error.value) and str(error.value).startswith("--beside ")


def test_the_38_sets(tmp_path):
    """Their plain mean is the average that is published: 0.6327."""
    assert len(LISTED) == 38 and len({row.title for row in LISTED}) == len({row.key for row in LISTED}) == 38
    published = dict(zip((row.title for row in LISTED), map(float, COCA_L14.split()), strict=True))
    (tmp_path / "coca.json").write_text(json.dumps(published))
    assert mean(read_beside(f"{tmp_path}/coca.json").percent.values()) == pytest.approx(63.27, abs=0.005)
    assert mean([]) is None and mean([1.0, 2.0]) == 1.5
