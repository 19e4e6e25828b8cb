"""The task on benchmarks in miniature: models that know all and that never look, a real one, and what goes wrong with pictures and
captions."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.config import TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.compositions.reading import read_compositions
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.task import NotApplicable, Outcome
from sycoca_ds.eval.tasks.compositionality import NUMBERS, WARNING, run_compositionality
from sycoca_ds.evaluation.command import evaluate, evaluate_checkpoint
from sycoca_ds.evaluation.options import EvaluateConfig
from sycoca_ds.model.pixels import normalise
from tests.worlds.data.nearly_fitting import (
    SUBSETS,
    Answering,
    caption,
    change,
    paint,
    write_aro,
    write_sugarcrepe,
    write_winoground,
)
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
RELATIONS = ["to the left of", "on", "next to", "under"] * 5
PAIRS = [("white", "black")] * 25 + [("old", "round")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All benchmarks, a data set and an untrained run."""
    folder = tmp_path_factory.mktemp("compositions")
    write_sugarcrepe(folder / "sugarcrepe", items=20)
    write_winoground(folder / "winoground", items=20)
    write_aro(folder / "aro", RELATIONS, PAIRS)
    make_data(folder / "data", images=2)
    make_run(folder / "run")
    return folder


def given(world: Path, *names: str) -> tuple[str, ...]:
    return tuple(f"{name}={world / name}" for name in names or ("sugarcrepe", "winoground", "aro"))


def bench_of(world: Path, model: torch.nn.Module | str, texts: tuple[str, ...], batch_size: int = 16) -> Bench:
    tokenizer = Tokenizer(next((world / "run").rglob("tokenizer.json")))
    if isinstance(model, str):
        model = Answering(model, tokenizer.decode)
    config = TrainConfig(model=model.config)
    inputs = Inputs(SuiteOptions(batch_size=batch_size), compositions=read_compositions(texts))
    return Bench(model, config, tokenizer, Collection(world / "data", 48), CPU, inputs)


def real(world: Path, seed: int = 3) -> torch.nn.Module:
    from sycoca_ds.model.sycoca import SyCoCa

    return SyCoCa(dataclasses.replace(SMALL, init_std=0.2), seed=seed).eval()


def run(world: Path, model: torch.nn.Module | str, *names: str) -> Outcome:
    outcome = run_compositionality(bench_of(world, model, given(world, *names)))
    assert not set(outcome.numbers) & set(outcome.reasons) and set(NUMBERS) == set(outcome.numbers) | set(outcome.reasons)
    return outcome


def test_a_model_that_knows_everything_gets_everything(world: Path) -> None:
    outcome = run(world, "knows")
    assert outcome.reasons == {}
    for name, value in outcome.numbers.items():
        assert value == (0.0 if "blind" in name else 100.0), name
    assert outcome.details["sets"]["vg_relation"]["groups"]["cosine"] == {"on": 100.0, "to the left of": 100.0, "under": 100.0}
    assert outcome.details["sets"]["sugarcrepe"] | {"digest": "", "groups": {}} == {
        "title": "SugarCrepe",
        "items": 140,
        "pictures": 20,
        "unreadable": 0,
        "same_tokens": 0,
        "cut": 0,
        "empty": 0,
        "digest": "",
        "unreadable_files": [],
        "groups": {},
    }
    assert outcome.details["told"][-1] == WARNING


def test_a_model_that_never_looks_is_unmasked(world: Path) -> None:
    """Its cosines are at chance; its likelihoods are what the texts alone give, which the blind column shows, and the picture adds
    nothing to them."""
    outcome = run(world, "blind")
    numbers, chance = outcome.numbers, outcome.chance
    for name in ("sugarcrepe_cosine", "vg_relation_cosine", "vg_attribution_cosine"):
        assert numbers[f"{name}_low"] <= chance[name] == 50.0 <= numbers[f"{name}_high"], name
    for name in ("sugarcrepe", "sugarcrepe_swap_att", "vg_relation", "vg_attribution"):
        assert numbers[f"{name}_likelihood"] == numbers[f"{name}_blind"] and numbers[f"{name}_gain"] == 0.0
    assert 20 < numbers["sugarcrepe_blind"] < 80
    for how in (
        "cosine",
        "likelihood",
        "gain",
    ):
        assert [numbers[f"winoground_{part}_{how}"] for part in ("text", "image", "group")] == [0.0] * 3


def test_texts_that_give_themselves_away_are_seen_in_the_blind_column(world: Path, tmp_path: Path) -> None:
    """Every true caption is likely, every false one unlikely, and the model never looks: by likelihood it seems to know all."""
    write_aro(tmp_path / "aro", ["on"] * 4, [])

    class Fluent(Answering):
        def caption_likelihoods(self, image_BCHW, text_TL, image_of_T):
            return -text_TL.ne(0).sum(1).float()

    for number in range(4):
        change(tmp_path / "aro/visual_genome_relation.json", number, false_caption="square a the of is and a")
    outcome = run_compositionality(bench_of(world, Fluent("blind", str), given(tmp_path, "aro")))
    assert [outcome.numbers[f"vg_relation_{how}"] for how in ("likelihood", "gain", "blind")] == [100.0, 0.0, 100.0]
    assert outcome.reasons["vg_attribution_gain"] == "visual_genome_attribution.json is not in the folder of --compositions aro"
    assert outcome.reasons["sugarcrepe_cosine"] == "no --compositions sugarcrepe=FOLDER was given"


def plain(model: torch.nn.Module, tokenizer: Tokenizer, file: Path, text: str, box: tuple[int, ...] | None = None) -> list[float]:
    """Cosine, likelihood and the likelihood before each empty picture, one call each."""
    from sycoca_ds.data.transforms import eval_image

    with Image.open(file) as opened:
        picture = opened.convert("RGB").crop(box) if box else opened.convert("RGB")
    image = normalise(eval_image(np.asarray(picture), 48)[None])
    ids = torch.as_tensor(tokenizer.encode([text], 40))
    noise = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    zero = torch.tensor([0])
    with torch.inference_mode():
        cosine = (model("image_features", image_BCHW=image) * model("text_features", text_BL=ids)).sum().item()
        of = [model("caption_likelihoods", image_BCHW=x[None], text_TL=ids, image_of_T=zero).item() for x in (image[0], *noise)]
    return [cosine, of[0], float(np.log(np.mean(np.exp(np.array(of[1:], np.float64)))))]


def test_every_score_of_a_real_model_equals_a_call_of_its_own(world: Path) -> None:
    model = real(world)
    bench = bench_of(world, model, given(world))
    kept = run_compositionality(bench).files["compositionality.npz"]
    for chosen in bench.inputs.compositions:
        for number in (0, 7, 19):
            item = chosen.items[number]
            assert kept[f"{chosen.name}_item"][number] == item.name
            for p, view in enumerate(item.views):
                for c, text in enumerate(item.captions):
                    cosine, likelihood, prior = plain(model, bench.tokenizer, view.file, text, view.box)
                    assert kept[f"{chosen.name}_cosine"][number, p, c] == pytest.approx(cosine, abs=1e-5)
                    assert kept[f"{chosen.name}_likelihood"][number, p, c] == pytest.approx(likelihood, abs=1e-3)
                    assert kept[f"{chosen.name}_blind"][number, p, c] == pytest.approx(prior, abs=1e-3)
                    assert kept[f"{chosen.name}_gain"][number, p, c] == pytest.approx(likelihood - prior, abs=1e-3)
    assert np.ptp(kept["sugarcrepe_likelihood"]) > 1, "nearly equal scores would test little"


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_changes_nothing(world: Path, batch_size: int) -> None:
    found = [run_compositionality(bench_of(world, real(world), given(world), size)) for size in (64, batch_size)]
    assert found[0].numbers == found[1].numbers
    for name, values in found[0].files["compositionality.npz"].items():
        if values.dtype.kind == "f":
            assert values == pytest.approx(found[1].files["compositionality.npz"][name], abs=1e-4), name


def test_a_model_without_a_text_decoder_has_cosines_only(world: Path) -> None:
    from sycoca_ds.model.sycoca import SyCoCa

    outcome = run(world, SyCoCa(dataclasses.replace(SMALL, family="clip"), seed=1).eval(), "sugarcrepe")
    reasons = {name: reason for name, reason in outcome.reasons.items() if name.startswith("sugarcrepe")}
    assert set(reasons.values()) == {"a 'clip' model has no text decoder"} and not any("cosine" in name for name in reasons)
    assert outcome.details["empty_pictures"] is None and set(outcome.files["compositionality.npz"]) == {
        "sugarcrepe_item",
        "sugarcrepe_cosine",
    }


def test_a_subset_that_is_not_there_leaves_the_mean_null(world: Path, tmp_path: Path) -> None:
    write_sugarcrepe(tmp_path / "sugarcrepe", items=3, subsets=SUBSETS[:-1])
    outcome = run_compositionality(bench_of(world, "knows", given(tmp_path, "sugarcrepe")))
    assert outcome.numbers["sugarcrepe_swap_att_gain"] == 100.0
    assert outcome.reasons["sugarcrepe_gain"] == "not all of its subsets are there (swap_obj)"
    assert outcome.reasons["sugarcrepe_swap_obj_gain_low"] == f"{tmp_path / 'sugarcrepe/swap_obj.json'} is not there"


def test_captions_that_cannot_be_told_apart_are_ties_and_ties_are_lost(world: Path, tmp_path: Path) -> None:
    """Equal ones, and ones that differ behind the end of the context only; with every batch size: a text is read once."""
    folder = write_sugarcrepe(tmp_path / "sugarcrepe", items=9, subsets=("swap_att",))
    long = "a red square and a blue square and " * 9
    changes = {
        "0": {"negative_caption": caption("red")},
        "1": {"negative_caption": "  " + caption(two := "red") + " "},
        "2": {"caption": f"{long} a dog", "negative_caption": f"{long} a cat"},
        "3": {"negative_caption": ""},
        "4": {"caption": "", "negative_caption": ""},
        "5": {"caption": f"{long} a dog"},
    }
    for number, fields in changes.items():
        change(folder / "swap_att.json", number, **({"caption": caption(two)} if number in "01" else {}) | fields)
    for batch_size in (1, 4, 64):
        outcome = run_compositionality(bench_of(world, real(world), given(tmp_path, "sugarcrepe"), batch_size))
        counts = outcome.details["sets"]["sugarcrepe"]
        assert [counts[name] for name in ("items", "same_tokens", "cut", "empty")] == [9, 4, 2, 2]
        kept = outcome.files["compositionality.npz"]
        for how in ("cosine", "likelihood", "gain", "blind"):
            own, other = kept[f"sugarcrepe_{how}"][:, 0].T
            assert (own == other).tolist() == [True] * 3 + [False, True] + [False] * 4, how
            won = 100 * np.mean(own > other)
            assert outcome.numbers[f"sugarcrepe_swap_att_{how}"] == pytest.approx(won)
    told = outcome.details["told"][0]
    assert "4 have two captions of the same tokens, which nobody can win" in told
    assert "2 have a caption longer than the context" in told and "2 have an empty caption" in told


def test_a_caption_that_just_fits_is_not_cut(world: Path, tmp_path: Path) -> None:
    folder = write_sugarcrepe(tmp_path / "sugarcrepe", items=2, subsets=("add_att",))
    bench = bench_of(world, "blind", given(tmp_path, "sugarcrepe"))
    text = "a"
    while bench.tokenizer.encode([f"{text} a"], 99)[0].astype(bool).sum() <= 40:
        text += " a"
    change(folder / "add_att.json", "0", caption=text)
    change(folder / "add_att.json", "1", caption=f"{text} a")
    outcome = run_compositionality(bench_of(world, "blind", given(tmp_path, "sugarcrepe")))
    assert outcome.details["sets"]["sugarcrepe"]["cut"] == 1
    assert outcome.details["sets"]["sugarcrepe"]["same_tokens"] == 0


def test_pictures_that_cannot_be_read_are_counted_and_told(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_sugarcrepe(tmp_path / "sugarcrepe", items=8)
    (folder / "val2017/000000000003.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        outcome = run_compositionality(bench_of(world, "knows", given(tmp_path, "sugarcrepe")))
    assert "SugarCrepe: 7 of 56 items are left out, their pictures cannot be read" in caplog.text
    counts = outcome.details["sets"]["sugarcrepe"]
    assert (counts["items"], counts["unreadable"], counts["pictures"]) == (49, 7, 7)
    assert "000000000003.png" in counts["unreadable_files"][0] and "7 more are left out" in outcome.details["told"][0]
    assert outcome.numbers["sugarcrepe_cosine"] == 100.0
    assert "add_att/3" not in outcome.files["compositionality.npz"]["sugarcrepe_item"]
    for file in folder.glob("val2017/*"):
        file.write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of the 8 pictures of SugarCrepe can be read"):
        run_compositionality(bench_of(world, "knows", given(tmp_path, "sugarcrepe")))


def test_boxes_outside_the_picture(world: Path, tmp_path: Path) -> None:
    """One that reaches over the edge is filled up with black, as PIL crops it; one without a pixel of the picture is none."""
    folder = write_aro(tmp_path / "aro", ["on"] * 4, [])
    path = folder / "visual_genome_relation.json"
    change(path, 0, bbox_x=-4, bbox_y=-4, bbox_w=20, bbox_h=20)
    change(path, 1, bbox_x=40)
    change(path, 2, bbox_w=0)
    change(path, 3, bbox_w=100_000)
    bench = bench_of(world, "knows", given(tmp_path, "aro"))
    view = bench.inputs.compositions[0].items[0].views[0]
    with Image.open(view.file) as picture:
        cropped = picture.crop((-4, -4, 16, 16))
    from sycoca_ds.data.transforms import eval_image

    assert torch.equal(view.load(48), eval_image(np.asarray(cropped), 48)) and view.load(48)[:, 0, 0].tolist() == [0, 0, 0]
    counts = run_compositionality(bench).details["sets"]["vg_relation"]
    assert (counts["items"], counts["unreadable"]) == (1, 3)


def test_grey_cmyk_palette_and_very_thin_pictures(world: Path, tmp_path: Path) -> None:
    """All of them black, and all known as black."""
    folder = write_sugarcrepe(tmp_path / "sugarcrepe", items=5, subsets=("add_obj",))
    kinds = {
        "grey.jpg": Image.new("L", (40, 30), 8),
        "cmyk.jpg": Image.new("RGB", (40, 30), (10, 10, 10)).convert("CMYK"),
        "palette.png": Image.new("RGB", (40, 30), (10, 10, 10)).convert("P"),
        "row.png": Image.new("RGB", (900, 1), (10, 10, 10)),
        "column.png": Image.new("RGB", (1, 900), (10, 10, 10)),
    }
    for number, (name, picture) in enumerate(kinds.items()):
        picture.save(folder / "val2017" / name)
        fields = {"filename": name, "caption": caption("black"), "negative_caption": caption("blue")}
        change(folder / "add_obj.json", str(number), **fields)
    outcome = run_compositionality(bench_of(world, "knows", given(tmp_path, "sugarcrepe")))
    assert outcome.details["sets"]["sugarcrepe"]["unreadable"] == 0
    assert [outcome.numbers[f"sugarcrepe_add_obj_{how}"] for how in ("cosine", "likelihood", "gain")] == [100.0] * 3


def test_two_files_of_one_picture_tie(world: Path, tmp_path: Path) -> None:
    folder = write_winoground(tmp_path / "winoground", items=3)
    for number in range(3):
        paint(folder / f"images/ex_{number}_img_1.png", "red")
        paint(folder / f"images/ex_{number}_img_0.png", "red")
    for batch_size in (1, 2, 64):
        outcome = run_compositionality(bench_of(world, real(world), given(tmp_path, "winoground"), batch_size))
        for how in ("cosine", "likelihood", "gain"):
            score_NPC = outcome.files["compositionality.npz"][f"winoground_{how}"]
            assert (score_NPC[:, 0] == score_NPC[:, 1]).all() and outcome.numbers[f"winoground_image_{how}"] == 0.0


def test_weights_that_diverged_are_told(world: Path) -> None:
    model = real(world)
    torch.nn.init.constant_(model.text_decoder.head.weight, float("nan"))
    with pytest.raises(UserError, match="answers .caption_likelihoods. are not finite"):
        run_compositionality(bench_of(world, model, given(world, "sugarcrepe")))
    torch.nn.init.constant_(model.text_encoder.proj.weight, float("nan"))
    with pytest.raises(UserError, match="answers .text_features. are not finite"):
        run_compositionality(bench_of(world, model, given(world, "sugarcrepe")))


def test_none_given(world: Path) -> None:
    with pytest.raises(NotApplicable, match="no --compositions NAME=FOLDER was given .NAME: sugarcrepe, winoground, aro."):
        run_compositionality(bench_of(world, "knows", ()))


def test_evaluate_py(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command: table, results.json, page, reuse until a benchmark changes."""
    out, aro = tmp_path / "out", write_aro(tmp_path / "aro", ["on"] * 3, [("a", "b")] * 25)
    write_sugarcrepe(tmp_path / "sugarcrepe", items=2)
    config = EvaluateConfig(
        *(str(world / "run"), str(world / "data")),
        out=str(out),
        compositions=given(tmp_path, "sugarcrepe", "aro"),
        tasks=("compositionality",),
        require=("compositionality.vg_relation_gain>=0",),
        device="cpu",
    )
    assert evaluate(config) == 0
    said = capsys.readouterr().out
    assert "compositions (SugarCrepe): 14 items on 2 pictures" in said and "Compositions, % right" in said
    assert "SugarCrepe swap_att" in said and WARNING.split(":")[0] in " ".join(said.split())
    results = json.loads((out / "results.json").read_text())
    record = results["tasks"]["compositionality"]
    assert tuple(record["metrics"]) == tuple(NUMBERS) and results["data"]["compositions"] == list(config.compositions)
    assert {name for name, value in record["metrics"].items() if value is None} == set(record["null_reasons"])
    assert all(name.startswith("winoground") for name in record["null_reasons"])
    page = (out / "report.html").read_text()
    assert "SugarCrepe replace_rel" in page and "a model that never looks wins it" in page
    with np.load(out / "samples/compositionality.npz") as kept:
        assert kept["vg_attribution_gain"].shape == (25, 1, 2)

    def reused() -> bool:
        options = SuiteOptions(tasks=("compositionality",))
        compositions = config.compositions
        results, _, _ = evaluate_checkpoint(config.checkpoint, config.data, None, out, options, CPU, compositions=compositions)
        return results["tasks"]["compositionality"]["reused"]

    assert reused()
    change(aro / "visual_genome_relation.json", 0, true_caption="another one")
    assert not reused() and reused()


def test_without_a_headline_no_empty_table_is_shown(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SugarCrepe with a subset missing has no mean: neither terminal nor page shows a table's head without rows."""
    write_sugarcrepe(tmp_path / "sugarcrepe", items=2, subsets=SUBSETS[:2])
    told = {"compositions": given(tmp_path, "sugarcrepe"), "tasks": ("compositionality",), "device": "cpu"}
    assert evaluate(EvaluateConfig(str(world / "run"), str(world / "data"), out=str(tmp_path / "out"), **told)) == 0
    said, page = capsys.readouterr().out, (tmp_path / "out/report.html").read_text()
    assert "Checkpoint at step" in said and "┃ task" not in said and "┃ benchmark" in said
    assert "<th>number</th>" not in page and "<th>benchmark</th>" in page and "all numbers of this task" in page
