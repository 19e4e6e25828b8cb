"""NoCaps by domain, and files for the servers of NoCaps and COCO."""

import dataclasses
import json

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.datasets.submissions import check_results, result_rows
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.eval.scorers.captions import score_captions
from sycoca_ds.eval.tasks.captioning import DOMAIN_NUMBERS
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.published.captioned import write_coco_2014, write_nocaps
from tests.worlds.trainings.eval_world import SMALL, made_of_pictures, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("captioned") / "run")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setattr(captioning, "java_command", lambda: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def evaluated(run, root, out, **options):
    words = {"data_root": str(root), "device": "cpu", "precision": "fp32", "gallery": 2, "caption_tokens": 4}
    status = evaluate(EvaluateConfig(str(run), out=str(out), **(words | options)))
    return status, json.loads((out / "sets.json").read_text())


@pytest.mark.slow
def test_nocaps_by_domain(run, tmp_path, capsys):
    root, out = tmp_path / "sets", tmp_path / "out"
    path = write_nocaps(root) / "nocaps_val_4500_captions.json"
    status, content = evaluated(run, root, out, sets=("nocaps",))
    metrics, reasons = (content["sets"]["nocaps"][part]["captioning"] for part in ("metrics", "null_reasons"))
    written = json.loads((out / "nocaps/samples/captions.json").read_text())
    said = {row["image_id"]: row["caption"] for row in written}
    references = {str(k): [f"thing {k} said {n}" for n in range(10)] for k in range(4)}
    for domain, ids in {"in": "0", "near": "2", "out": "13"}.items():
        alone = score_captions({own: said[own] for own in ids}, {own: references[own] for own in ids}).numbers
        found = {name: metrics[f"{domain}_domain_{name}"] for name in ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l")}
        assert found == pytest.approx({name: alone[name] for name in found})
        assert reasons[f"{domain}_domain_meteor"].startswith("METEOR is a Java program")
    whole = score_captions(said, references).numbers
    assert {name: metrics[name] for name in ("cider", "bleu4")} == pytest.approx({name: whole[name] for name in ("cider", "bleu4")})
    details = json.loads((out / "nocaps/results.json").read_text())["tasks"]["captioning"]["details"]
    made = made_of_pictures(out / "nocaps", "captioning")
    assert {
        f"{domain}_domain_{name}" for domain in ("in", "near", "out") for name in ("cider", "rouge_l", "bleu1", "bleu4")
    } <= made
    assert {"cider", "cider_shuffled", "bleu4"} <= made
    assert details["domains"] == {"in-domain": 1, "near-domain": 1, "out-domain": 2}
    assert "CIDEr, out-domain" in capsys.readouterr().out and "CIDEr, near-domain" in (out / "nocaps/report.html").read_text()

    content = json.loads(path.read_text())
    for image, domain in zip(content["images"], ("in-domain", "near-domain", "near-domain", "in-domain"), strict=True):
        image["domain"] = domain
    path.write_text(json.dumps(content))
    reasons = evaluated(run, root, out, sets=("nocaps",))[1]["sets"]["nocaps"]["null_reasons"]["captioning"]
    assert {reasons[f"out_domain_{name}"] for name in ("cider", "meteor")} == {"no picture is out-domain"}
    assert "in_domain_cider" not in reasons
    for image in content["images"]:
        del image["domain"]
    path.write_text(json.dumps(content))
    record = evaluated(run, root, out, sets=("nocaps",))[1]["sets"]["nocaps"]
    told = "nocaps_val_4500_captions.json gives no domain for 4 of its 4 pictures"
    assert {record["null_reasons"]["captioning"][name] for name in DOMAIN_NUMBERS} == {told}
    assert record["metrics"]["captioning"]["cider"] is not None and f"nocaps: {told}" in capsys.readouterr().out


@pytest.mark.slow
def test_files_for_servers(run, tmp_path, capsys, monkeypatch):
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.eval.datasets.official import OfficialCollection
    from sycoca_ds.eval.datasets.registry import SETS
    from sycoca_ds.model.pixels import normalise

    root, out = tmp_path / "sets", tmp_path / "out"
    write_nocaps(root)
    write_coco_2014(root)
    status, content = evaluated(run, root, out, submit=("nocaps", "coco_captions"))
    assert status == 0 and content["sets"] == {}
    assert {name: record["images"] for name, record in content["submissions"].items()} == {
        "nocaps/test": 2,
        "coco_captions/val2014": 2,
        "coco_captions/test2014": 3,
    }
    assert content["submissions"]["nocaps/test"]["not_as_published"] == ["2 pictures, officially 10,600"]
    rows = json.loads((out / "nocaps/captions_test_sycoca_results.json").read_text())
    assert [set(row) for row in rows] == [{"image_id", "caption"}] * 2 and [row["image_id"] for row in rows] == [4500, 4501]
    rows = json.loads((out / "coco_captions/captions_test2014_sycoca_results.json").read_text())
    assert [row["image_id"] for row in rows] == [7, 581929, 9]
    loaded, data = load_for_inference(run), OfficialCollection(SETS["coco_captions"], root, 48, "test2014")
    for number, row in enumerate(rows):
        with torch.inference_mode():
            ids = loaded.model("generate", image_BCHW=normalise(data.image(number)[None]), steps=4)
        assert row["caption"] == loaded.tokenizer.decode(ids[0].tolist()).strip()
    assert "2 pictures, officially 10,600" in capsys.readouterr().out

    monkeypatch.setattr(OfficialCollection, "image", lambda *_: pytest.fail("captions that are kept are written again"))
    (out / "nocaps/captions_test_sycoca_results.json").unlink()
    assert evaluated(run, root, out, submit=("nocaps",))[0] == 0
    assert len(json.loads((out / "nocaps/captions_test_sycoca_results.json").read_text())) == 2
    monkeypatch.undo()

    (root / "nocaps/nocaps_test_image_info.json").unlink()
    status, content = evaluated(run, root, out, submit=("nocaps",))
    assert status == 1 and content["submissions"]["nocaps/test"]["status"] == "not here"
    assert "no nocaps_test_image_info.json" in content["submissions"]["nocaps/test"]["reason"]
    clip = make_run(tmp_path / "clip", dataclasses.replace(SMALL, family="clip"))
    status, content = evaluated(clip, root, out, submit=("coco_captions",))
    assert status == 1 and content["submissions"]["coco_captions/test2014"]["reason"] == "a 'clip' model has no text decoder"


IDS = ("4500", "4501", "4502")
GOOD = [{"image_id": 4500, "caption": "a"}, {"image_id": 4502, "caption": ""}, {"image_id": 4501, "caption": "c"}]


def test_a_whole_file_passes(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(GOOD))
    assert check_results(path, IDS) == 1, "one caption is empty"
    path.write_text(json.dumps(result_rows(IDS, ["a", "b", "c"])))
    assert check_results(path, IDS) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (GOOD[:2], "1 of 3 images are missing: 4501"),
        ([], "3 of 3 images are missing: 4500, 4501, 4502"),
        ([*GOOD, GOOD[0]], "1 of 3 images are in it twice: 4500"),
        ([*GOOD, {"image_id": 1, "caption": "x"}], "1 of 3 images are not of this split: 1"),
        (
            [*GOOD[:2], {"image_id": "4501", "caption": "c"}],
            "image_id, a whole number, and caption, a text; found {'image_id': '4501'",
        ),
        ([*GOOD[:2], {"image_id": True, "caption": "c"}], "a whole number"),
        ([*GOOD[:2], {"image_id": 4501, "caption": None}], "a text"),
        ([*GOOD[:2], {"image_id": 4501}], "expected rows of"),
        ([*GOOD[:2], {"image_id": 4501, "caption": "c", "score": 1}], "expected rows of"),
        ({"4500": "a"}, "expected a JSON list, found dict"),
    ],
)
def test_a_file_that_a_server_would_refuse(tmp_path, rows, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError) as error:
        check_results(path, IDS)
    assert message in str(error.value)


def test_ids_that_are_no_numbers():
    with pytest.raises(UserError, match="ids that are no numbers, which servers take only: a.jpg"):
        result_rows(("4500", "a.jpg"), ["x", "y"])
