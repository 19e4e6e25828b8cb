"""evaluate.py on the paper's sets: the numbers of the tasks on pictures and captions read by hand, and nulls with their reasons."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.eval.comparison.folders import read_folder
from sycoca_ds.eval.datasets import evaluation
from sycoca_ds.eval.datasets.official import OfficialCollection
from sycoca_ds.eval.datasets.registry import SETS
from sycoca_ds.eval.registry import METRICS
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.eval.stats.recalls import retrieve
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.open_clip.world import run_export
from tests.worlds.published.captioned import write_coco_captions, write_flickr, write_mscoco
from tests.worlds.published.classed import write_caltech
from tests.worlds.published.packed import write_cifar10
from tests.worlds.published.pictures import colour
from tests.worlds.trainings.eval_world import make_data, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("official") / "run")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """One thread, no JVM, no open_clip, whatever is installed here."""
    monkeypatch.setattr(captioning, "java_command", lambda: None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def evaluated(run, root, out, **options):
    config = EvaluateConfig(
        str(run), data_root=str(root), out=str(out), device="cpu", precision="fp32", gallery=2, caption_tokens=4, **options
    )
    return evaluate(config), json.loads((out / "sets.json").read_text())["sets"]


def test_retrieval_captioning_and_classification(run, tmp_path, capsys):
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.model.pixels import normalise

    root, out = tmp_path / "sets", tmp_path / "out"
    root.mkdir()
    write_mscoco(root)
    write_cifar10(root)
    write_caltech(root)
    status, records = evaluated(run, root, out, sets=("mscoco", "cifar10", "caltech101"))
    assert status == 0 and [record["status"] for record in records.values()] == ["done"] * 3
    assert list(records["mscoco"]["metrics"]) == ["retrieval", "captioning"] and list(records["cifar10"]["metrics"]) == [
        "classification"
    ]
    assert records["mscoco"]["counts"] == {"pictures": 3, "captions": 17, "classes": None}
    assert records["mscoco"]["not_as_published"] == ["3 pictures, officially 5,000", "17 captions, officially 25,010"]
    assert "mscoco: 17 captions, officially 25,010" in capsys.readouterr().out
    assert records["caltech101"]["primary"] == "mean_per_class" and records["cifar10"]["primary"] == "top1"

    loaded = load_for_inference(run)
    model, size = loaded.model.eval(), loaded.config.model.image.image_size

    def features(pixels):
        """A picture of one colour is one of that colour at any size."""
        square = torch.tensor(pixels, dtype=torch.uint8).view(3, 1, 1).expand(3, size, size)
        with torch.inference_mode():
            return model("image_features", image_BCHW=normalise(square[None])).float()[0]

    def texts(captions):
        ids = torch.as_tensor(loaded.tokenizer.encode(captions, loaded.config.model.text.context_length))
        with torch.inference_mode():
            return model("text_features", text_BL=ids).float()

    said = [[f"A {n} number {k} of {i}" for k in range(c)] for n, i, c in (("s", 391895, 5), ("a", 90, 7), ("d", 2, 5))]
    image_IE = torch.stack([features(colour(number)) for number in (10, 13, 15)])
    text_TE = texts([caption for captions in said for caption in captions])
    expected = retrieve(image_IE, text_TE, torch.tensor([0] * 5 + [1] * 7 + [2] * 5)).metrics()
    found = records["mscoco"]["metrics"]["retrieval"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    written = json.loads((out / "mscoco/samples/captions.json").read_text())
    assert [row["image_id"] for row in written] == ["391895", "90", "2"]
    handed_in = json.loads((out / "mscoco/captions_test_results.json").read_text())
    assert handed_in == [{"image_id": own, "caption": row["caption"]} for own, row in zip((391895, 90, 2), written, strict=True)]

    results = json.loads((out / "cifar10/results.json").read_text())
    details = results["tasks"]["classification"]["details"]
    assert details["images"] == 3 and details["classes"] == 10 and details["templates"] == 18
    assert results["data"]["names"] == "the set's files" and results["data"]["official_counts"]["pictures"] == 10_000
    assert "no urls" in results["data"]["images_in_training_reason"]
    assert (out / "mscoco/report.html").is_file() and (out / "cifar10/report.html").is_file()

    again, records_again = evaluated(run, root, out, sets=("mscoco", "cifar10", "caltech101"))
    assert again == 0 and records_again == records
    assert all(
        json.loads((out / name / "results.json").read_text())["tasks"][task]["reused"]
        for name, task in (("mscoco", "retrieval"), ("cifar10", "classification"))
    )
    path = root / "caltech101/101_ObjectCategories/yin_yang/image_0001.jpg"
    Image.new("RGB", (20, 20), (1, 2, 3)).save(path, "PNG")
    evaluated(run, root, out, sets=("caltech101",))
    assert not json.loads((out / "caltech101/results.json").read_text())["tasks"]["classification"]["reused"], "other pictures"


def test_what_is_missing_is_null_with_its_reason(run, tmp_path, capsys):
    root, out = tmp_path / "sets", tmp_path / "out"
    root.mkdir()
    folder = write_flickr(root)
    status, records = evaluated(run, root, out, suite="paper", tasks=("retrieval", "classification"))
    assert status == 0, "of a suite what is not there is left out"
    assert records["flickr30k"]["status"] == "done" and list(records["flickr30k"]["metrics"]) == ["retrieval"]
    assert records["stl10"]["status"] == "not here" and "expected stl10/ with test_X.bin" in records["stl10"]["reason"]
    assert records["stl10"]["metrics"] == {"classification": dict.fromkeys(METRICS["classification"])}
    assert set(records["stl10"]["null_reasons"]["classification"].values()) == {records["stl10"]["reason"]}
    assert records["dtd"]["status"] == "not run" and "is for linear_probe, which is none of --tasks" in records["dtd"]["reason"]
    assert records["nocaps"]["status"] == "not run" and "none of --tasks retrieval classification" in records["nocaps"]["reason"]
    assert set(records) == set(SETS) - {"coco_captions"} and "stl10: no numbers" in capsys.readouterr().out

    assert evaluated(run, root, out, sets=("stl10",), tasks=("classification",))[0] == 1, "what is named must be there"
    path = folder / "flickr30k-images/998.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    status, records = evaluated(run, root, out, suite="paper", tasks=("retrieval",))
    assert status == 1 and records["flickr30k"]["status"] == "failed"
    assert "998.jpg" in records["flickr30k"]["reason"] and "(truncated image); count them by" in records["flickr30k"]["reason"]
    path.unlink()
    status, records = evaluated(run, root, out, sets=("flickr30k",), tasks=("retrieval",))
    assert status == 1 and "1 of 2 pictures are not there: 998.jpg" in records["flickr30k"]["reason"]


def test_what_stands_beside_numbers_costs_no_set(run, tmp_path, monkeypatch, capsys):
    """Ids that are no numbers, half a surrogate pair in a caption, a page that cannot be written: the numbers of each set stand in
    sets.json, and the next set is evaluated."""
    root, out = tmp_path / "sets", tmp_path / "out"
    path = write_coco_captions(root) / "annotations/captions_val2017.json"
    write_cifar10(root)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["id"] = f"img{image['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"img{entry['image_id']}"
    content["annotations"][1]["caption"] = "half \ud83d of a face"
    path.write_text(json.dumps(content))
    status, records = evaluated(run, root, out, sets=("coco_captions", "cifar10"))
    assert status == 0 and [record["status"] for record in records.values()] == ["done", "done"]
    assert not (out / "coco_captions/captions_val2017_results.json").exists()
    said = capsys.readouterr().out
    assert "coco_captions: no captions for servers, ids that are no numbers, which servers take only: img42, img7, img99" in said
    assert "half ? of a face" in (out / "coco_captions/report.html").read_text()

    def fail(*arguments):
        raise KeyError("a page's own fault")

    monkeypatch.setattr(evaluation, "write_report", fail)
    status, again = evaluated(run, root, tmp_path / "again", sets=("coco_captions", "cifar10"))
    assert status == 1 and "cifar10: report.html not written, " in capsys.readouterr().err
    for name, record in again.items():
        assert record["not_written"] == [f'{name}: report.html not written, "a page\'s own fault"']
        assert {**record, "not_written": []} == records[name]


def test_a_board_for_weights_of_an_unknown_step_is_refused_before_any_work(tmp_path):
    run = make_run(tmp_path / "run")
    folder = tmp_path / "weights"
    assert run_export("--checkpoint", run, "--out", folder) == 0
    record = json.loads((folder / "config.json").read_text())
    record["source"]["step"] = None
    (folder / "config.json").write_text(json.dumps(record))
    (tmp_path / "sets").mkdir()
    write_cifar10(tmp_path / "sets")
    make_data(tmp_path / "data", images=4)
    for where in ({"data_root": str(tmp_path / "sets"), "sets": ("cifar10",)}, {"data": str(tmp_path / "data")}):
        words = {"out": str(tmp_path / "out"), "tensorboard": str(tmp_path / "board"), "device": "cpu", **where}
        with pytest.raises(UserError, match="--tensorboard .*: nobody knows the step of these weights; leave it out"):
            evaluate(EvaluateConfig(str(folder), **words))
        assert not list((tmp_path / "out").rglob("*.json")), "told before anything is evaluated"


def test_sets_of_earlier_calls_stay_listed(run, tmp_path):
    """As long as checkpoint, data root and options are the same and their folders are there; `compare` then finds them all."""
    root, out = tmp_path / "sets", tmp_path / "out"
    root.mkdir()
    write_mscoco(root)
    write_cifar10(root)
    write_caltech(root)
    some = {"tasks": ("retrieval", "classification")}
    _, first = evaluated(run, root, out, sets=("mscoco", "stl10"), **some)
    status, both = evaluated(run, root, out, sets=("cifar10",), batch_size=2, **some)
    assert status == 0 and list(both) == ["mscoco", "stl10", "cifar10"]
    assert both["mscoco"] == first["mscoco"] and both["stl10"]["status"] == "not here"
    assert set(read_folder(out)) == {"mscoco", "cifar10"}
    assert list(evaluated(run, root, out, sets=("caltech101",), seed=1, **some)[1]) == ["caltech101"], "other options"
    assert list(evaluated(run, root, out, sets=("mscoco",), seed=1, **some)[1]) == ["caltech101", "mscoco"]
    shutil.rmtree(out / "caltech101")
    assert list(evaluated(run, root, out, sets=("cifar10",), seed=1, **some)[1]) == ["mscoco", "cifar10"]
    other = make_run(tmp_path / "other", seed=4)
    assert list(evaluated(other, root, out, sets=("cifar10",), seed=1, **some)[1]) == ["cifar10"], "another checkpoint"


def test_the_collection_is_the_set(tmp_path):
    write_mscoco(tmp_path)
    data = OfficialCollection(SETS["mscoco"], tmp_path, 16)
    assert len(data) == 3 and data.image_of_text_T.tolist() == [0] * 5 + [1] * 7 + [2] * 5
    assert data.captions_of_image[1][6] == "A a number 6 of 90" and data.captions[5] == "A a number 0 of 90"
    assert [picture.image_id for picture in data.pictures] == ["391895", "90", "2"]
    ((numbers, images),) = data.batches(8)
    assert numbers == [0, 1, 2] and images.shape == (3, 3, 16, 16)
    assert (images == torch.tensor(np.array([colour(n) for n in (10, 13, 15)])).view(3, 3, 1, 1)).all()
    assert data.digest == OfficialCollection(SETS["mscoco"], tmp_path, 16).digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name sets by --sets, or --suite paper"),
        ({"sets": ("flicker30k",)}, "did you mean flickr30k"),
        ({"suite": "papers"}, "no such suite"),
        ({"sets": ("mnist",), "labels": "x.json"}, "--labels goes with --data"),
        ({"sets": ("mnist",), "regions": "x.json"}, "--regions goes with --data"),
        ({"sets": ("mnist",), "compositions": ("aro=x",)}, "--compositions goes with --data, not with --data-root"),
        ({"sets": ("mnist",), "require": ("retrieval.t2i_r1>=1",)}, "--require goes with --data"),
        ({"sets": ("mnist",), "probe_train": "x"}, "--probe-train goes with --data"),
        ({"submit": ("flickr30k",)}, "no server takes captions of it (there are coco_captions nocaps vqa_v2)"),
        ({"submit": ("nocap",)}, "--submit nocap: no such set; did you mean nocaps"),
        ({"submit": ("nocaps",), "data_root": None, "data": "x"}, "go with --data-root"),
        ({"sets": ("mnist",), "data": "x"}, "one of them"),
        ({"sets": ("mnist",), "data_root": None}, "one of them"),
        ({"sets": ("mnist",), "data_root": None, "data": "x"}, "go with --data-root"),
        ({"sets": ("mnist",), "data_root": "/nowhere"}, "no such folder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, message):
    words = {"data_root": str(tmp_path), "out": str(tmp_path / "out"), "device": "cpu"} | options
    with pytest.raises(UserError) as error:
        evaluate(EvaluateConfig(str(tmp_path / "none"), **words))
    assert message in str(error.value)
