"""Numbers from what pictures add: those of results.json, and of any choice of pictures what the official scorers say of it."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from sycoca_ds.eval.comparison.numbers import bounds, class_weights, mean
from sycoca_ds.eval.compositions.accuracy import accuracies, by_picture
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.scorers.caption_tokens import java_command
from sycoca_ds.eval.scorers.captions import Meteor
from sycoca_ds.eval.scorers.corpus import bleu_of, bleu_statistics, meteor_of
from sycoca_ds.eval.stats.intervals import bootstrap_interval
from tests.worlds.trainings.eval_world import made_of_pictures

WORDS = "a the red big dog dogs cat runs running ran fast quickly on in street road horse man person".split()


def tables(images: int, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """References, hypotheses; among them equal, empty and foreign ones."""
    random = np.random.default_rng(seed)

    def sentence(words: int) -> str:
        return " ".join(random.choice(WORDS, words))

    references = {str(n): [sentence(random.integers(3, 10)) for _ in range(random.integers(1, 4))] for n in range(images)}
    hypotheses = {str(n): [sentence(random.integers(0, 9))] for n in range(images)}
    hypotheses["0"], hypotheses["1"], hypotheses["2"] = references["0"][:1], [""], references["3"][:1]
    return references, hypotheses


def drawn(table: dict[str, list[str]], rows: np.ndarray) -> dict[str, list[str]]:
    return {f"{place} {row}": table[str(row)] for place, row in enumerate(rows)}


def test_bleu_of_any_choice_is_the_scorers(tmp_path) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    references, hypotheses = tables(40, 0)
    rows_IX = bleu_statistics(references, hypotheses)
    for seed in range(6):
        rows = np.random.default_rng(seed).integers(0, 40, (1, 7, 40, 40, 90, 40)[seed])
        expected = Bleu(4).compute_score(drawn(references, rows), drawn(hypotheses, rows), verbose=0)[0]
        found = [float(bleu_of(rows_IX[rows].sum(0), n)) for n in (1, 2, 3, 4)]
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert bleu_of(np.stack([rows_IX[:9].sum(0), rows_IX.sum(0)]), 2).shape == (2,)


@pytest.mark.skipif(java_command() is None, reason="needs the program `java` (Debian: default-jre-headless)")
def test_meteor_of_any_choice_is_the_jars() -> None:
    references, hypotheses = tables(30, 1)
    with Meteor() as meteor:
        score, rows_IX = meteor.score(references, hypotheses)
        assert meteor_of(rows_IX.sum(0)) == pytest.approx(score, rel=1e-12) and rows_IX.shape == (30, 23)
        rows = np.random.default_rng(2).integers(0, 30, 45)
        resampled = meteor.score(drawn(references, rows), drawn(hypotheses, rows))[0]
        assert meteor_of(rows_IX[rows].sum(0)) == pytest.approx(resampled, rel=1e-12)
        one = meteor.score(*(drawn(table, np.array([0])) for table in (references, hypotheses)))[0]
        assert meteor_of(rows_IX[0]) == pytest.approx(one) and meteor.starts == 1
    assert meteor_of(rows_IX[0]) > 0.9 and meteor_of(rows_IX[1]) == 0.0


def test_every_number_is_that_of_the_evaluation(done, world) -> None:
    missing = {}
    for task, record in done[1]["tasks"].items():
        if record["status"] == "done":
            found, metrics = made_of_pictures(world / "out", task), record["metrics"]
            missing[task] = {name for name in TASKS[task].headlines if metrics[name] is not None and name not in found}
    assert missing == {
        "retrieval": set(),
        "classification": set(),
        "captioning": set(),
        "reconstruction": set(),
        "masking": {"position_overlap"},  # of pairs
        "alignment": set(),
    }


def test_means_over_classes_and_groups_are_weighted_means() -> None:
    random = np.random.default_rng(3)
    class_I = random.integers(0, 7, 60).astype(float)
    class_I[:5] = np.nan
    right_I = 100.0 * random.integers(0, 2, 60)
    slow = np.mean([right_I[class_I == k].mean() for k in np.unique(class_I[5:])])
    assert mean(right_I, class_weights(class_I)).value == pytest.approx(slow)
    won_N, group_of = random.integers(0, 2, 90) > 0, random.choice(["a", "b", "few"], 90).tolist()
    picture_of = random.integers(0, 25, 90).tolist()
    for groups in (("a", "b"), ("b",)):
        value_I, weight_I = by_picture(won_N, group_of, picture_of, groups)
        assert mean(value_I, weight_I).value == pytest.approx(accuracies(won_N, group_of, picture_of, groups).mean[0])
        assert weight_I.sum() == pytest.approx(1.0) and np.isnan(value_I[weight_I == 0]).all()


def test_intervals_are_those_of_resampled_pictures(done) -> None:
    """Against the loop of eval/stats/intervals.py, on a weighted mean with pictures that have no value; of all numbers."""
    random = np.random.default_rng(4)
    value_I, weight_I = random.normal(10, 3, 80), random.integers(1, 4, 80).astype(float)
    value_I[::9] = np.nan
    there = np.isfinite(value_I)
    slow = bootstrap_interval(lambda rows: np.average(value_I[there][rows], weights=weight_I[there][rows]), int(there.sum()), 5)
    found = bounds({"x": mean(value_I, weight_I), "all": mean(np.nan_to_num(value_I))}, 6)
    assert found["x"] == pytest.approx(slow, abs=0.1) and slow[1] - slow[0] > 1
    intervals = {task: record["intervals"] for task, record in done[1]["tasks"].items()}
    metrics = done[1]["tasks"]["retrieval"]["metrics"]
    assert intervals["retrieval"]["t2i_r5"] == [metrics["t2i_r5_low"], metrics["t2i_r5_high"]]
    assert {"bleu4", "cider", "rouge_l"} <= set(intervals["captioning"]) and {"top1", "mean_per_class"} <= set(
        intervals["classification"]
    )
    for task, found in intervals.items():
        for name, (low, high) in found.items():
            assert low <= done[1]["tasks"][task]["metrics"][name] <= high, (task, name)


def test_the_table_for_other_programs(done, world) -> None:
    """A row a number, with every digit; a null with its reason."""
    with open(world / "out/results.csv", newline="") as file:
        rows = {(row["task"], row["metric"]): row for row in csv.DictReader(file)}
    for task, record in done[1]["tasks"].items():
        for name, value in record["metrics"].items():
            if name.endswith(("_low", "_high")) and name.rsplit("_", 1)[0] in record["metrics"]:
                assert (task, name) not in rows
                continue
            row = rows[task, name]
            assert (float(row["value"]) if row["value"] else None) == value and row["reason"] == record["null_reasons"].get(
                name, ""
            )
            low, high = record["intervals"].get(name, ("", ""))
            assert [row["low"], row["high"]] == [str(low), str(high)] and row["step"] == "7"
            assert row["chance"] == str(record["chance"].get(name, ""))
