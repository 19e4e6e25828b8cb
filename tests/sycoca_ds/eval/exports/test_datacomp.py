"""--suite datacomp: each set's main metric against a slow computation from logits, and the average of those that are here."""

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from sycoca_ds.eval.commands import CompareCommand
from sycoca_ds.eval.datasets.reading import Question
from sycoca_ds.eval.datasets.registry import SETS
from sycoca_ds.eval.exports.datacomp import print_summary, suite_of, summary, value_of
from sycoca_ds.eval.exports.finding import all_sets
from sycoca_ds.eval.exports.published import Published
from sycoca_ds.eval.exports.tasklist import LISTED, known
from sycoca_ds.eval.tasks.association import chance, jaccard, prompt
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.published.exported import Shown, scenes, write_parquet, write_wds, write_winogavil
from tests.worlds.trainings.eval_world import make_run

CLASSES = tuple(f"a {colour} thing" for colour in "red green blue purple brown black white grey".split())
TEMPLATES = ("{c}", "a picture of {c}")


def vectors(run, samples):
    """(N, E) of pictures, image by image, and what gives a text's (E,); all of length 1."""
    from sycoca_ds.data.transforms import eval_image, load_image
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.model.pixels import normalise

    loaded = load_for_inference(run)
    model, size, length = loaded.model.eval(), loaded.config.model.image.image_size, loaded.config.model.text.context_length

    def unit(task, **inputs):
        with torch.inference_mode():
            return torch.nn.functional.normalize(model(task, **inputs).float(), dim=-1)[0].double().numpy()

    def text(said):
        return unit("text_features", text_BL=torch.as_tensor(loaded.tokenizer.encode([said], length)))

    images = [normalise(eval_image(load_image(sample.picture), size)[None]) for sample in samples]
    return np.array([unit("image_features", image_BCHW=image) for image in images]), text


def logits_of(run, samples):
    """(N, K): cosines of pictures and classes."""
    features_NE, text = vectors(run, samples)
    means = [np.mean([text(template.replace("{c}", name)) for template in TEMPLATES], axis=0) for name in CLASSES]
    weight_KE = np.array([mean / np.linalg.norm(mean) for mean in means])
    return features_NE @ weight_KE.T


def labelled(samples, logit_NK) -> list[Shown]:
    """Classes such that some are guessed right and some among the first five; three groups, one without a picture between them."""
    place = np.random.default_rng(1).choice([0, 1, 3, 6], len(samples))
    own = np.argsort(-logit_NK, axis=1)[np.arange(len(samples)), place]
    return [
        Shown(sample.picture, int(label), sample.captions, (number % 3 * 2, 1, 0))
        for number, (sample, label) in enumerate(zip(samples, own, strict=True))
    ]


@pytest.mark.slow
def test_main_metrics_and_the_average(tmp_path, capsys):
    run, root, out = make_run(tmp_path / "run"), tmp_path / "sets", tmp_path / "out"
    root.mkdir()
    logit_NK = logits_of(run, scenes(30))
    samples = labelled(scenes(30), logit_NK)
    for name in ("cifar10", "vtab-caltech101", "wilds-iwildcam", "wilds-fmow", "dollar_street", "geode"):
        write_wds(root / f"wds_{name}_test", samples, CLASSES, TEMPLATES, per_shard=12)
    write_wds(root / "wds_imagenet_sketch", scenes(3), ("only", "two"))
    (root / "wds_imagenet_sketch/classnames.txt").unlink()
    write_parquet(root / "flickr_1k_test_image_text_retrieval", scenes(12), captioned=True)
    (tmp_path / "other.json").write_text(json.dumps({"name": "other", "numbers": {"CIFAR-10": 0.25, "Flickr": 0.5, "SVHN": 0.3}}))
    config = EvaluateConfig(
        str(run),
        data_root=str(root),
        suite="datacomp",
        beside=(f"{tmp_path}/other.json",),
        out=str(out),
        device="cpu",
        precision="fp32",
    )
    assert evaluate(config) == 1, "one set is there and broken"
    content = json.loads((out / "datacomp.json").read_text())
    rows = {row["title"]: row for row in content["rows"]}

    label_N, guess_N = np.array([sample.label for sample in samples]), logit_NK.argmax(axis=1)
    group_N = np.array([number % 3 for number in range(30)])
    right_N, among_N = guess_N == label_N, (np.argsort(-logit_NK, axis=1)[:, :5] == label_N[:, None]).any(axis=1)
    expected = {
        "CIFAR-10": right_N.mean(),
        "Caltech-101": balanced_accuracy_score(label_N, guess_N),
        "iWildCam": f1_score(label_N, guess_N, average="macro", labels=np.unique(label_N)),
        "FMoW": min(right_N[group_N == group].mean() for group in range(3)),
        "GeoDE": min(right_N[group_N == group].mean() for group in range(3)),
        "Dollar Street": min(among_N[group_N == group].mean() for group in range(3)),
    }
    for title, value in expected.items():
        assert rows[title]["value"] == pytest.approx(100 * value), title
    assert len({round(float(value), 6) for value in expected.values()}) == 5, "metrics that cannot be told apart here"
    retrieval = json.loads((out / "sets.json").read_text())["sets"]["flickr30k"]["metrics"]["retrieval"]
    assert rows["Flickr"]["value"] == pytest.approx((retrieval["i2t_r1"] + retrieval["t2i_r1"]) / 2)

    titles = [*expected, "Flickr"]
    assert content["sets"] == 7 and content["of"] == 38 and set(content["numbers"]) == set(titles)
    assert content["average"] == pytest.approx(sum(rows[title]["value"] for title in titles) / 7)
    (beside,) = content["beside"]
    assert beside["sets"] == 2 and beside["average"] == pytest.approx(37.5)
    mine = (rows["CIFAR-10"]["value"] + rows["Flickr"]["value"]) / 2
    assert beside["difference"] == pytest.approx(mine - 37.5)
    assert rows["SVHN"]["status"] == "not here" and "expected wds_vtab-svhn/ with test/nshards.txt" in rows["SVHN"]["reason"]
    assert rows["ImageNet Sketch"]["status"] == "failed" and "expected winogavil/ with" in rows["WinoGAViL"]["reason"]
    assert rows["CIFAR-10"]["not_as_published"] == ["30 pictures, officially 10,000", "8 classes, officially 10"]
    said = capsys.readouterr().out
    assert "DataComp: 7 of 38 sets" in said and "no number, not here: ImageNet 1k" in said
    assert "DataComp's own average is over all 38 sets" in said and "other: 2 of these 7, averaged above" in said
    again = EvaluateConfig(
        str(run),
        data_root=str(root),
        suite="datacomp",
        beside=(f"{out}/datacomp.json",),
        out=str(tmp_path / "again"),
        device="cpu",
        precision="fp32",
    )
    evaluate(again)
    (beside,) = json.loads((tmp_path / "again/datacomp.json").read_text())["beside"]
    assert beside["sets"] == 7 and beside["difference"] == pytest.approx(0, abs=1e-9), "ours beside ours"


@pytest.mark.slow
def test_winogavil(tmp_path):
    """Against wino_eval.py's steps with scikit-learn's Jaccard index; cues that a model knows, and others."""
    from sklearn.metrics import jaccard_score

    run, samples, random = make_run(tmp_path / "run"), scenes(20), np.random.default_rng(2)
    features_NE, text_of = vectors(run, samples)
    asked, expected = [], {}
    for number in range(16):
        size, right = int(random.choice([5, 6, 10, 12])), int(random.integers(1, 4))
        among, cue = random.permutation(20)[:size].tolist(), ("apple", "Red ring", "blue")[number % 3]
        text = text_of(f"An {cue.lower()}" if number % 3 == 0 else f"A {cue.lower()}")
        order = [among[place] for place in np.argsort(features_NE[among] @ text)]
        chosen = order[-right:] if number % 2 else [order[0], *order[-right + 1 :]][:right]
        asked.append((cue, among, chosen))
        truth, said = np.isin(among, chosen), np.isin(among, order[-len(chosen) :])
        expected.setdefault(size, []).append(jaccard_score(truth, said))
    (tmp_path / "sets").mkdir()
    write_winogavil(tmp_path / "sets/winogavil", samples, asked)
    options = {"data_root": str(tmp_path / "sets"), "out": str(tmp_path / "out"), "device": "cpu", "precision": "fp32"}
    assert evaluate(EvaluateConfig(str(run), suite="datacomp", **options)) == 0
    record = json.loads((tmp_path / "out/sets.json").read_text())["sets"]["parquet:winogavil"]
    numbers = record["metrics"]["association"]
    for size in (5, 6, 10, 12):
        assert numbers[f"jaccard_{size}"] == pytest.approx(100 * np.mean(expected[size])), size
    both = expected[10] + expected[12]
    assert numbers["jaccard_10_12"] == pytest.approx(100 * np.mean(both)) and 0 < numbers["jaccard_10_12"] < 100
    content = json.loads((tmp_path / "out/datacomp.json").read_text())
    assert content["numbers"] == {"WinoGAViL": numbers["jaccard_10_12"]} == {"WinoGAViL": content["average"]}
    assert content["rows"][32]["not_as_published"] == ["16 questions, officially 3,563"]
    assert all_sets(tmp_path / "sets")[-1].tasks == ("association",)
    results = json.loads((tmp_path / "out/parquet_winogavil/results.json").read_text())["tasks"]["association"]
    assert results["metrics"] == numbers and results["details"]["questions"] == 16
    low, high = results["intervals"]["jaccard"]
    assert low < numbers["jaccard"] < high
    assert "Jaccard index, 10 to 12 pictures" in (tmp_path / "out/parquet_winogavil/report.html").read_text()
    other = dict(options, out=str(tmp_path / "other"))
    assert evaluate(EvaluateConfig(str(make_run(tmp_path / "other_run", seed=1)), sets=("parquet:winogavil",), **other)) == 0
    assert json.loads((tmp_path / "other/sets.json").read_text())["sets"]["parquet:winogavil"]["primary"] == "jaccard_10_12"
    assert CompareCommand((tmp_path / "out", tmp_path / "other"), out=tmp_path / "beside", permutations=30).run() == 0
    (row,) = [row for row in json.loads((tmp_path / "beside/comparison.json").read_text())["rows"] if row["number"] == "jaccard"]
    (against,) = row["against"]
    assert (
        against["first"] == pytest.approx(numbers["jaccard"]) and against["second"] != against["first"] and against["images"] == 16
    )
    write_winogavil(tmp_path / "sets/winogavil", samples, [("a", [1, 2], [])])
    assert evaluate(EvaluateConfig(str(run), sets=("parquet:winogavil",), **options)) == 1
    record = json.loads((tmp_path / "out/sets.json").read_text())["sets"]["parquet:winogavil"]
    assert "row 0: 0 of 2 candidates are among the associations" in record["reason"]


def test_winogavils_chance_is_that_of_all_draws():
    for right, candidates in (((0,), 5), ((1, 3), 5), ((0, 1, 2), 6), ((0, 1, 2, 3), 5)):
        draws = list(itertools.combinations(range(candidates), len(right)))
        expected = np.mean([jaccard(right, draw) for draw in draws])
        assert chance(Question("a", 0, candidates, right)) == pytest.approx(expected)
    assert jaccard((1, 2), (2, 1)) == 1 and prompt("Apple") == "An apple" and prompt("Tree") == "A tree"


def test_every_set_has_its_place(tmp_path):
    found = suite_of(tmp_path)
    assert len(found) == 38 and tuple(row for _, row in found.values()) == LISTED
    assert found["mscoco"][0].tasks == ("retrieval",) and found["mscoco"][0].layout == SETS["mscoco"].layout
    for row in LISTED:
        write_wds(tmp_path / f"wds_{row.name}_test", scenes(1), ("a",) * 24)
    found = suite_of(tmp_path)
    for name, (entry, row) in found.items():
        if row.classes:
            assert name == f"wds:{row.name}" and known(row.name) == row and entry.primary == row.primary
            assert (entry.counts["test"].pictures, entry.counts["test"].classes) == (row.pictures, row.classes)
            assert entry.layout.group == (0 if row.title in ("FMoW", "Dollar Street", "GeoDE") else None)


def test_a_set_under_clip_benchmarks_name(tmp_path):
    write_wds(tmp_path / "wds_vtab-cifar10", scenes(1), ("a",) * 24)
    assert suite_of(tmp_path)["wds:vtab-cifar10"][1].title == "CIFAR-10"


def test_averages_without_numbers(capsys):
    content = summary({}, {}, "x", [Published("other", {"SVHN": 1.0})])
    assert content["average"] is None and content["sets"] == 0 and content["beside"][0]["difference"] is None
    print_summary(content)
    assert "0 of 38" in capsys.readouterr().out
    assert value_of(LISTED[0], {}) is None
