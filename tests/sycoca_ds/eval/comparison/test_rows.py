"""What is compared, over which pictures, what is refused and what is told: on folders written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.alignment.segmenting import areas, measures
from sycoca_ds.eval.commands import CompareCommand
from sycoca_ds.eval.comparison.command import wanted_numbers
from sycoca_ds.eval.comparison.rows import same_benchmarks
from sycoca_ds.eval.registry import METRICS, TASKS
from sycoca_ds.eval.stats.paired import KEY
from sycoca_ds.eval.suite import FORMAT

IMAGES = 30
CLASS_I = np.repeat([0.0, 1.0, 2.0, np.nan], [16, 8, 4, 2])
DOMAIN_I = np.repeat(["in-domain", "near-domain", "out-domain"], 10)
QUESTIONS_I = np.tile([1.0, 2.0, 3.0], 10)


def each_of(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """What a model leaves of each picture."""
    random = np.random.default_rng(seed)
    top1_I = np.where(np.isnan(CLASS_I), np.nan, 100.0 * random.integers(0, 2, IMAGES))
    confusion_IKK = random.integers(0, 9, (IMAGES, 3, 3))
    return {
        "linear_probe": {"top1": top1_I, "class": CLASS_I},
        "captioning": {
            "cider": random.random(IMAGES),
            "in_domain_cider": np.where(DOMAIN_I == "in-domain", random.random(IMAGES), np.nan),
            "bleu_statistics": random.integers(1, 9, (IMAGES, 10)).astype(float),
            "domain": DOMAIN_I,
        },
        "alignment": {"areas": np.stack([areas(confusion_KK) for confusion_KK in confusion_IKK])},
        "vqa": {"accuracy": 100.0 * random.integers(0, 4, IMAGES) / 3, "accuracy_count": QUESTIONS_I},
    }


DETAILS = {
    "linear_probe": {"features": "output", "labels_digest": "0" * 64},
    "captioning": {"decoding": "greedy"},
    "alignment": {"background": "background"},
    "vqa": {"questions_digest": "1" * 64, "answering": "rank", "candidates_digest": "2" * 64},
    "compositionality": {"sets": {"sugarcrepe": {"title": "SugarCrepe", "digest": "3" * 64}}},
}


def write(folder: Path, each: dict[str, dict[str, np.ndarray]], **changes: Any) -> Path:
    """An evaluation's folder. Args: changes: details of tasks, `data`, or a task left out by None."""
    tasks: dict[str, Any] = {}
    for task, arrays in each.items():
        if changes.get(task, True) is None:
            continue
        reasons = {"spice": "SPICE is not here"} if task == "captioning" else {}
        details = {**DETAILS[task], **changes.get(task, {})}
        tasks[task] = {"status": "done", "metrics": {}, "null_reasons": reasons, "chance": {}, "details": details}
        (folder / "each").mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"each/{task}.npz", image_id=np.array([f"{n:02d}" for n in range(IMAGES)]), **arrays)
    data = {"manifest_digest": "d", "folder": "data", "images": IMAGES, "regions_digest": "4" * 64, "segments_digest": "5" * 64}
    results = {
        "format": FORMAT,
        "checkpoint": {"path": folder.name, "step": 1, "digest": "e" * 64},
        "data": data | changes.get("data", {}),
        "tasks": tasks,
        "provenance": {},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def compared(first: Path, *others: Path, numbers: tuple[str, ...] = (), out: Path) -> dict[str, Any]:
    assert CompareCommand((first, *others), numbers, out=out, permutations=30).run() == 0
    return json.loads((out / "comparison.json").read_text())


def test_each_number_that_is_asked_for_is_compared_or_told(tmp_path: Path) -> None:
    """Values against the definitions, not against the code that sums."""
    made = [each_of(seed) for seed in (0, 1)]
    folders = [write(tmp_path / name, each) for name, each in zip("ab", made, strict=True)]
    asked = ("linear_probe.top1", "linear_probe.mean_per_class", "captioning.in_domain_cider", "captioning.out_domain_bleu2")
    asked += ("alignment.miou", "vqa.accuracy")
    dropped = ("captioning.spice", "captioning.near_domain_cider", "vqa.accuracy_usual", "masking.word_iou", "vqa.accuracy_low")
    found = compared(*folders, numbers=(*asked, *dropped), out=tmp_path / "out")
    rows = {f"{row['task']}.{row['number']}": row for row in found["rows"]}
    assert set(rows) == set(asked)

    def values(each: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
        top1_I, counts = each["linear_probe"]["top1"], each["captioning"]["bleu_statistics"][20:].sum(0)
        precision = np.sqrt(np.prod(counts[6:8] / counts[2:4]))
        return {
            "linear_probe.top1": np.nanmean(top1_I),
            "linear_probe.mean_per_class": np.mean([top1_I[CLASS_I == k].mean() for k in range(3)]),
            "captioning.in_domain_cider": each["captioning"]["in_domain_cider"][:10].mean(),
            "captioning.out_domain_bleu2": precision * min(1, np.exp(1 - counts[1] / counts[0])),
            "alignment.miou": measures(each["alignment"]["areas"].sum(0))["miou"],
            "vqa.accuracy": (each["vqa"]["accuracy"] * QUESTIONS_I).sum() / QUESTIONS_I.sum(),
        }

    first, second = map(values, made)
    for name, row in rows.items():
        (against,) = row["against"]
        assert (against["first"], against["second"]) == pytest.approx((first[name], second[name])), name
        assert against["difference"] == pytest.approx(second[name] - first[name])
        assert (
            against["low"] < against["difference"] < against["high"]
            and against["smallest"] > 0
            and against["p_holm"] >= against["p"]
        )
    assert rows["linear_probe.top1"]["against"][0]["test"] == "McNemar"
    assert {row["against"][0]["test"] for name, row in rows.items() if name != "linear_probe.top1"} == {"permutation"}
    assert found["notes"][:4] == [
        "not compared: captioning.spice (SPICE is not here)",
        "not compared: captioning.near_domain_cider, vqa.accuracy_usual (not made of what single pictures add, and so not tested "
        "over them)",
        "not compared: vqa.accuracy_low (the end of an interval; its number is compared with an interval of the difference)",
        "not compared: masking.word_iou (the task was not run)",
    ]


def test_what_one_folder_lacks_is_told_without_being_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = write(tmp_path / "a", each_of(0)), write(tmp_path / "b", each_of(1), vqa=None)
    notes = compared(first, second, out=tmp_path / "out")["notes"]
    assert "b has nothing to compare of vqa.accuracy (the task was not run)" in notes
    assert "b has nothing to compare of vqa.accuracy" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "numbers", "told"),
    [
        ({"data": {"regions_digest": "f" * 64}}, ("alignment",), "b: alignment is of other regions .digest ffff.* than in .*4444"),
        ({"data": {"segments_digest": "f" * 64}}, (), "b: alignment is of other classes of pixels"),
        ({"vqa": {"questions_digest": "f" * 64}}, ("vqa.accuracy",), "b: vqa is of other questions"),
    ],
)
def test_the_same_pictures_asked_something_else_are_refused(changes, numbers, told: str, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", each_of(0)), write(tmp_path / "b", each_of(1), **changes)
    with pytest.raises(UserError, match=told):
        compared(first, second, numbers=numbers, out=tmp_path / "out")
    assert compared(first, second, numbers=("linear_probe",), out=tmp_path / "out")["rows"], "other tasks can be chosen"


def test_other_compositions_and_other_classes_are_refused(tmp_path: Path) -> None:
    each = each_of(0) | {"compositionality": {"sugarcrepe_cosine": np.zeros(IMAGES), "sugarcrepe_cosine_weight": np.ones(IMAGES)}}
    first = write(tmp_path / "a", each)
    other = {"sets": {"sugarcrepe": {"title": "SugarCrepe", "digest": "f" * 64}}}
    with pytest.raises(UserError, match="compositionality is of other items of SugarCrepe"):
        compared(first, write(tmp_path / "b", each, compositionality=other), out=tmp_path / "out")
    for task, name, what in (("linear_probe", "class", "classes"), ("captioning", "domain", "domains")):
        changed = {**each, task: {**each[task], name: np.roll(each[task][name], 1)}}
        with pytest.raises(UserError, match=f"{task} is of other {what} of pictures"):
            compared(first, write(tmp_path / task, changed), out=tmp_path / "out")


def test_compositions_are_compared_on_the_benchmarks_that_all_have() -> None:
    nan = np.nan
    first = {KEY: np.array(["sugarcrepe 0 a.jpg", "sugarcrepe 1 b.jpg"]), "sugarcrepe_cosine": np.array([100.0, 50.0])}
    second = {
        KEY: np.array(["winoground 0 c.jpg", "sugarcrepe 0 a.jpg", "sugarcrepe 1 b.jpg"]),
        "sugarcrepe_cosine": np.array([nan, 0.0, 100.0]),
        "winoground_text_cosine": np.array([100.0, nan, nan]),
    }
    own, its = same_benchmarks([first, second])
    assert {name: array.tolist() for name, array in own.items()} == {name: array.tolist() for name, array in first.items()}
    assert its[KEY].tolist() == first[KEY].tolist() and its["sugarcrepe_cosine"].tolist() == [0.0, 100.0]
    assert set(its) == {KEY, "sugarcrepe_cosine"} and same_benchmarks([first, None]) == [first, None]


def test_other_ways_of_asking_are_told(tmp_path: Path) -> None:
    changes = {
        "linear_probe": {"features": "embedding"},
        "alignment": {"background": "0.5"},
        "vqa": {"answering": "generate", "candidates_digest": "f" * 64},
    }
    first, second = write(tmp_path / "a", each_of(0)), write(tmp_path / "b", each_of(1), **changes)
    notes = compared(first, second, out=tmp_path / "out")["notes"]
    assert notes[-1] == (
        "b: not only the weights differ, also alignment's background 0.5 in place of background; linear_probe's features embedding "
        "in place of output; vqa's answering generate in place of rank; "
        "vqa's candidates_digest ffffffffffff in place of 222222222222"
    )
    assert not any("answering" in line for line in compared(first, second, numbers=("captioning",), out=tmp_path / "out")["notes"])


def test_values_are_those_of_the_pictures_that_both_have(tmp_path: Path) -> None:
    """Without it the table would show 66.7 and 50.0 beside a difference of 0."""
    rows = []
    for name, value_I in (("a", [1.0, 1.0, 0.0, np.nan]), ("b", [np.nan, 1.0, 0.0, np.nan]), ("c", [1.0, 1.0, 1.0, 1.0])):
        value_I = np.concatenate([np.array(value_I), np.full(IMAGES - 4, np.nan)])
        rows.append(write(tmp_path / name, {"captioning": {"rouge_l": value_I}}))
    found = compared(*rows[:2], numbers=("captioning.rouge_l",), out=tmp_path / "out")
    against = found["rows"][0]["against"][0]
    assert found["rows"][0]["values"] == pytest.approx([2 / 3, 1 / 2]), "of each alone, as in its results.json"
    assert (against["first"], against["second"], against["difference"], against["images"]) == (0.5, 0.5, 0.0, 2)
    line = "captioning.rouge_l: over the 2 pictures that have it in both, of 3 in a and 2 in b"
    table = (tmp_path / "out/comparison.md").read_text()
    assert "| captioning.rouge_l | 0.500 | 0.500 | 0.000 |" in table and line in found["notes"] and line in table
    compared(*rows, numbers=("captioning.rouge_l",), out=tmp_path / "out")
    lines = (tmp_path / "out/comparison.md").read_text().splitlines()
    shown = [[cell.strip() for cell in line.split("|")[1:7]] for line in lines if "rouge_l |" in line or "|  | " in line]
    assert shown == [["captioning.rouge_l", "0.500", "0.500", "", "b", "0.000"], ["", "0.667", "", "1.000", "c", "+0.333"]]


def test_controls_are_no_tests_unless_asked_for() -> None:
    """Holm's correction is paid for every test of the table."""
    default = {f"{task}.{number}" for task, numbers in wanted_numbers(()).items() for number in numbers}
    words = ("untrained_", "other_", "blind", "shuffled", "random_", "no_text_", "majority", "usual", "ceiling")
    assert not [name for name in default if any(word in name.partition(".")[2] for word in words)]
    assert {
        "masking.word_iou",
        "alignment.miou",
        "vqa.accuracy",
        "captioning.cider",
        "linear_probe.top1",
        "reconstruction.gap",
    } <= default
    left = {f"{task}.{name}" for task in TASKS for name in TASKS[task].headlines} - default
    assert {"captioning.cider_shuffled", "alignment.untrained_miou", "alignment.other_pointing", "vqa.accuracy_blind"} <= left
    assert len(left) > 20
    assert wanted_numbers(("captioning.cider_shuffled", "vqa"))["captioning"] == ("cider_shuffled",)
    assert "accuracy_blind" in wanted_numbers(("vqa",))["vqa"] and "accuracy_low" in METRICS["vqa"]
    assert "accuracy_low" not in wanted_numbers(("vqa",))["vqa"]
