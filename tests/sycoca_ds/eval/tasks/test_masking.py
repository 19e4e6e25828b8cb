"""The task masking from end to end: on models whose scores are known, where every number has to come to what is known of it, and
on a real checkpoint, against direct calls, with its page and its table of similarities."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import MaskingConfig, TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.masking.attending import hidden_sets
from sycoca_ds.eval.masking.verdict import NO_UNNAMED
from sycoca_ds.eval.masking.wording import NUMBERS
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.regions.patches import read_regions
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.stats.controls import wrong_captions
from sycoca_ds.eval.suite import check_options
from sycoca_ds.eval.task import NotApplicable
from sycoca_ds.eval.tasks.masking import run_masking
from sycoca_ds.evaluation.command import evaluate, evaluate_checkpoint
from sycoca_ds.evaluation.options import EvaluateConfig
from sycoca_ds.model.pixels import normalise
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.data.named_squares import COLOURS, ENTRIES, Knowing, draw_squares, squares_tokenizer, write_squares
from tests.worlds.trainings.eval_world import SMALL, made_of_pictures, make_run

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PICTURES = 120
TEXT = dataclasses.replace(SMALL.text, vocab_size=ENTRIES)
MODEL = dataclasses.replace(SMALL, text=TEXT, family="clip", masking=MaskingConfig(high_ratio=0.2))
TRAINED = dataclasses.replace(SMALL, text=TEXT, masking=MaskingConfig(high_ratio=0.4))


def make_world(folder: Path, pictures: int) -> Path:
    write_squares(folder, draw_squares(pictures))
    squares_tokenizer(folder / "tokenizer.json")
    make_run(folder / "run", TRAINED, tokenizer=squares_tokenizer)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("masking"), PICTURES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where numbers do not matter."""
    return make_world(tmp_path_factory.mktemp("small"), 12)


def words_of(tokenizer: Tokenizer) -> dict[int, set[str]]:
    """{id: colours in whose names it stands}, one each."""
    found: dict[int, set[str]] = {}
    for colour in COLOURS:
        caption = f"a {colour} square"
        (ids,) = tokenizer.encode([caption], 40)
        (places,) = tokenizer.places(caption, [(2, 2 + len(colour))], 40)
        for place in places:
            found.setdefault(int(ids[place]), set()).add(colour)
    return found


def known(world: Path, kind: str) -> dict[str, float]:
    tokenizer = Tokenizer(world / "tokenizer.json")
    data = Collection(world / "data", 48)
    regions = read_regions(world / "test_regions.json", data, tokenizer, 8, 40)
    config = TrainConfig(model=MODEL)
    bench = Bench(
        Knowing(words_of(tokenizer), kind), config, tokenizer, data, CPU, Inputs(SuiteOptions(batch_size=50), regions=regions)
    )
    outcome = run_masking(bench)
    assert not set(outcome.numbers) & set(outcome.reasons) and set(NUMBERS) <= set(outcome.numbers) | set(outcome.reasons)
    return outcome.numbers | {f"chance/{name}": value for name, value in outcome.chance.items()}


def test_colours_are_single_words_of_this_tokenizer(world: Path) -> None:
    """Or the oracle below would be none."""
    words = words_of(Tokenizer(world / "tokenizer.json"))
    assert sorted(colour for colours in words.values() for colour in colours) == sorted(COLOURS) and len(words) == len(COLOURS)


def test_a_model_that_finds_what_is_named_reaches_everything(world: Path) -> None:
    found = known(world, "named")
    for name in ("named_over_unnamed", "named_over_rest", "pointing", "word_iou"):
        assert found[name] == 1.0, name
        assert found[f"{name}_low"] == found[f"{name}_high"] == 1.0
    assert found["other_named_over_unnamed"] == pytest.approx(0.5, abs=0.1)
    assert found["other_named_over_unnamed_low"] <= 0.5 <= found["other_named_over_unnamed_high"]
    assert found["named_over_unnamed_gain_low"] > 0.35
    assert found["no_text_named_over_unnamed"] == 0.5
    assert found["no_text_pointing"] == pytest.approx(found["chance/pointing"]) == 4 / 36
    assert found["no_text_word_iou"] == pytest.approx(found["chance/word_iou"])
    assert found["other_pointing"] < 0.3 and found["own_caption_higher"] > 0.8 and found["caption_ignored"] < 0.5
    assert 0.3 < found["untrained_named_over_unnamed"] < 0.7, "fresh weights of a real model stand beside it"


def test_a_model_that_finds_objects_is_unmasked(world: Path) -> None:
    found = known(world, "objects")
    assert found["objects_over_background"] == found["other_objects_over_background"] == 1.0
    assert found["named_over_unnamed"] == 0.5 and found["named_over_unnamed_gain"] == 0.0
    assert found["caption_ignored"] == 1.0 and found["caption_overlap"] == found["no_text_overlap"] == 1.0
    assert found["own_caption_higher"] == 0.5 and found["pointing"] == pytest.approx(4 / 16)


def test_noise_comes_to_chance(world: Path) -> None:
    found = known(world, "noise")
    for name in ("named_over_unnamed", "named_over_rest", "objects_over_background", "pointing", "word_iou", "caption_overlap"):
        wide = found[f"{name}_high"] - found[f"{name}_low"]
        assert found[name] == pytest.approx(found[f"chance/{name}"], abs=wide), "four standard errors"
    assert found["caption_ignored"] == pytest.approx(0.0, abs=0.06)


def run(world: Path, out: Path, checkpoint: Path | None = None, **options: object) -> dict:
    words = {"device": "cpu", "precision": "fp32", "gallery": 3, "tasks": ("masking",), **options}
    assert evaluate(EvaluateConfig(str(checkpoint or world / "run"), str(world / "data"), out=str(out), **words)) == 0
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def done(world: Path) -> dict:
    return run(world, world / "out", regions=str(world / "test_regions.json"))


def test_numbers_of_a_checkpoint_are_those_of_direct_calls(world: Path, done: dict) -> None:
    """A picture at a time; the untrained model is SyCoCa with seed 0."""
    record = done["tasks"]["masking"]
    loaded, data = load_for_inference(world / "run"), Collection(world / "data", 48)
    other_I, masking = wrong_captions(data.captions_of_image), loaded.config.model.masking
    for prefix, model in (("", loaded.model), ("untrained_", SyCoCa(loaded.config.model, seed=0).eval())):
        overlaps, higher, aucs, hits = [], [], [], []
        for number, square in enumerate(draw_squares(PICTURES)):
            captions = [square.caption, data.captions_of_image[other_I[number]][0]]
            text = torch.from_numpy(loaded.tokenizer.encode(captions, 40))
            image = normalise(data.image(number)[None])
            with torch.no_grad():
                own, other = model("masking_scores", image_BCHW=image, text_CBL=text[:, None])[0]
                tokens = model("token_scores", image_BCHW=image, text_CBL=text[None, :1])["token_BCLN"][0, 0]
            one, another = (set(hidden_sets(score[None], masking)[0].nonzero().flatten().tolist()) for score in (own, other))
            overlaps.append(len(one & another) / len(one))
            best = [score.sort(descending=True).values[: len(one)].double().mean().item() for score in (own, other)]
            higher.append(float(best[0] > best[1]))
            labels = square.labels[::8, ::8].reshape(-1)
            pairs = [(own[i], own[j]) for i in np.flatnonzero((labels == 1) | (labels == 2)) for j in np.flatnonzero(labels > 2)]
            aucs.append(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
            for place, colour in enumerate(square.colours[:2], 1):
                (at,) = (n for n, token in enumerate(text[0].tolist()) if loaded.tokenizer.decode([token]) == colour)
                hits.append(labels[tokens[[at, at + 1]].amax(0).argmax()] == place)  # "red" and "square"
        metrics = record["metrics"]
        assert metrics[f"{prefix}caption_overlap"] == pytest.approx(np.mean(overlaps), abs=2e-3), prefix
        assert metrics[f"{prefix}own_caption_higher"] == pytest.approx(np.mean(higher), abs=0.02)
        assert metrics[f"{prefix}named_over_unnamed"] == pytest.approx(np.mean(aucs), abs=2e-3)
        assert metrics[f"{prefix}pointing"] == pytest.approx(np.mean(hits), abs=0.01)
    assert set(record["null_reasons"].values()) == {"fewer than two pictures hide a patch of this kind (named background)"}
    bounded = [name for name in NUMBERS if metrics.get(f"{name}_low") is not None]
    assert len(bounded) > 30 and all(metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] for name in bounded)
    made = made_of_pictures(world / "out", "masking")
    assert {"gap_named", "random_gap_background", "word_iou", "untrained_caption_overlap", "untrained_pointing"} <= made
    assert record["details"]["regions"]["annotated"] == PICTURES and record["details"]["hidden_patches"] == 14


def test_the_page_shows_both_hidden_sets_and_says_the_dependence_in_a_number(world: Path, done: dict) -> None:
    page = (world / "out" / "report.html").read_text()
    metrics = done["tasks"]["masking"]["metrics"]
    same = f"Under another picture&#39;s caption {100 * metrics['caption_overlap']:.1f} % of the hidden patches stay the same"
    assert f"{same}; chance is 39 %, with untrained weights {100 * metrics['untrained_caption_overlap']:.1f} %." in page
    assert f"that it leaves out in {100 * metrics['named_over_unnamed']:.1f} % of cases, under another picture&#39;s" in page
    assert page.count('alt="hidden, own caption"') == page.count('alt="hidden, another picture&#39;s"') == 3
    with np.load(world / "out/samples/masking.npz") as kept:
        for own, other, overlap in zip(kept["own_hidden"], kept["other_hidden"], kept["overlap"], strict=True):
            assert own.sum() == other.sum() == 14 and overlap == pytest.approx((own & other).sum() / 14)
            assert f"{100 * overlap:.0f} % of the hidden patches stay the same</span>" in page
    assert f"{metrics['named_over_unnamed']:.3f}" in page and "the run&#39;s own" not in page and "(the run's own)" in page


def test_a_checkpoint_gives_a_table_over_similarities(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each of them is what a run with it would measure; what this model cannot compute is told."""
    regions = str(small / "test_regions.json")
    asked = ("token_max", "token_max:content", "token_max:all", "centred_token_max", "global")
    found = run(small, tmp_path / "out", regions=regions, similarity=asked)
    table = found["tasks"]["masking"]["details"]["similarities"]
    assert tuple(table) == asked
    assert table["token_max:all"] == {name: value for name, value in table["token_max"].items() if name in table["token_max:all"]}
    said = capsys.readouterr().out
    assert "centred_token_max │" in said and "┃ pointing ┃" in said
    assert "regions (drawn world): 12 of 12 pictures, 24 phrases" in said
    assert "pointing" not in table["global"] and table["global"]["named_over_unnamed"] != table["token_max"]["named_over_unnamed"]
    left_out = load_for_inference(small / "run").tokenizer.meaningless_ids(TRAINED.masking.common_words)
    content = {"words": "content", "left_out_ids": tuple(left_out)}
    for name, changed in (("centred_token_max", {"similarity": "centred_token_max"}), ("token_max:content", content)):
        masking = dataclasses.replace(TRAINED.masking, **changed)
        other = make_run(tmp_path / name, dataclasses.replace(TRAINED, masking=masking), tokenizer=squares_tokenizer)
        metrics = run(small, tmp_path / f"again {name}", other, regions=regions)["tasks"]["masking"]["metrics"]
        assert table[name].items() <= metrics.items() and table[name] != table["token_max:all"]


def test_without_regions_the_dependence_is_measured_and_the_rest_told_in_a_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    record = run(small, tmp_path, gallery=2)["tasks"]["masking"]
    there = {name for name, value in record["metrics"].items() if value is not None}
    assert {"caption_overlap", "no_text_overlap_high", "untrained_own_caption_higher", "score_std"} <= there
    assert not [name for name in there if "named" in name or "pointing" in name or "gap" in name]
    assert set(record["null_reasons"].values()) == {"no --regions FILE_OR_FOLDER was given"}
    lines = [line for line in capsys.readouterr().out.splitlines() if "no --regions" in line]
    assert len(lines) == 1 and lines[0].startswith("Masks and the caption, ")


def test_captions_that_name_everything_are_told_in_a_sentence_and_leave_no_empty_row(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As those of the demo world: there is no unnamed object to score above."""
    squares = draw_squares(12, named=2, objects=2)
    write_squares(tmp_path, squares)
    make_run(tmp_path / "run", TRAINED, tokenizer=squares_tokenizer)
    regions = tmp_path / "test_regions.json"
    told = run(tmp_path, tmp_path / "half", regions=str(regions))["tasks"]["masking"]
    assert told["null_reasons"]["named_over_unnamed"] == told["null_reasons"]["gap_unnamed"] == NO_UNNAMED
    assert told["metrics"]["named_over_rest"] is not None and told["metrics"]["gap_background"] is not None
    content = json.loads(regions.read_text())
    for record in content["pictures"].values():
        record["background"]["named"] = True
    regions.write_text(json.dumps(content))
    capsys.readouterr()
    told = run(tmp_path, tmp_path / "out", regions=str(regions))["tasks"]["masking"]
    missing = {name for name, reason in told["null_reasons"].items() if reason == "the captions name all that their pictures show"}
    assert {"named_over_unnamed_gain", "untrained_named_over_rest", "gap_background", "random_gap_unnamed_low"} <= missing
    own, other = (100 * told["metrics"][name] for name in ("pointing", "other_pointing"))
    assert f"cannot be asked here: {NO_UNNAMED}. In {own:.1f} % of cases a phrase's words" in told["details"]["told"]
    assert f"those of another caption's phrase there in {other:.1f} % (chance 11.1 %)." in told["details"]["told"]
    page, said = (tmp_path / "out/report.html").read_text(), " ".join(capsys.readouterr().out.split())
    assert told["details"]["told"].replace("'", "&#39;") in page and f"masks: {told['details']['told']}" in said
    rows = page.split("Masks and the caption</h3>")[1].split("all numbers of this task")[0]
    assert "Not measured" not in rows and "Named over" not in rows and "Pointing" in rows and "Gap, named objects" in rows
    assert "numbers: not measured, the captions name all that their pictures show" in said


def test_scores_that_look_at_other_pictures_do_not_hang_on_the_batch_size(small: Path, tmp_path: Path) -> None:
    """All pictures of the data set are the others, whoever shares a batch: one at a time gives what all at once give."""
    masking = dataclasses.replace(TRAINED.masking, similarity="centred_over_pictures")
    checkpoint = make_run(tmp_path / "run", dataclasses.replace(TRAINED, masking=masking), tokenizer=squares_tokenizer)
    found = []
    for size in (1, 5, 12):
        options = {"batch_size": size, "tasks": ("reconstruction", "masking"), "regions": str(small / "test_regions.json")}
        tasks = run(small, tmp_path / str(size), checkpoint, **options)["tasks"]
        with np.load(tmp_path / str(size) / "samples/masking.npz") as kept:
            found.append((tasks, kept["own_score"], kept["own_hidden"]))
        assert tasks["masking"]["details"]["other_pictures"] == 11
    loaded, data = load_for_inference(checkpoint), Collection(small / "data", 48)
    text = torch.from_numpy(loaded.tokenizer.encode([captions[0] for captions in data.captions_of_image], 40))
    images = normalise(torch.stack([data.image(number) for number in range(12)]))
    with torch.no_grad():
        whole = loaded.model("masking_scores", image_BCHW=images, text_CBL=text[None])[:, 0]
    for tasks, scores, hidden in found:
        np.testing.assert_allclose(scores, whole[[0, 6, 11]], atol=2e-6)
        assert np.array_equal(hidden, found[0][2])
        for task in ("reconstruction", "masking"):
            assert tasks[task]["metrics"] == {
                name: pytest.approx(value, abs=1e-3) for name, value in found[0][0][task]["metrics"].items()
            }


def test_reused_until_regions_or_similarities_change(small: Path, tmp_path: Path) -> None:
    regions = tmp_path / "test_regions.json"
    regions.write_text((small / "test_regions.json").read_text())
    (tmp_path / "regions").symlink_to(small / "regions")

    def reused(*similarity: str) -> bool:
        options = SuiteOptions(tasks=("masking",), gallery=2, similarity=similarity)
        results, _, _ = evaluate_checkpoint(small / "run", small / "data", None, tmp_path / "out", options, CPU, regions=regions)
        return results["tasks"]["masking"]["reused"]

    assert [reused(), reused()] == [False, True]
    content = json.loads(regions.read_text())
    for record in content["pictures"].values():
        record["objects"][1] |= {"named": False, "span": None}
    regions.write_text(json.dumps(content))
    assert [reused(), reused("global"), reused("global")] == [False, False, True]


def test_captions_that_are_all_alike_have_no_other_one(small: Path) -> None:
    """A set of pictures to classify, say: the other tasks go on."""
    loaded, data = load_for_inference(small / "run"), Collection(small / "data", 48)
    data.captions_of_image = [["a picture"]] * len(data)
    with pytest.raises(NotApplicable, match="nearly all captions of the data set are equal"):
        run_masking(Bench(loaded.model, loaded.config, loaded.tokenizer, data, CPU))


def test_an_unknown_similarity_is_refused() -> None:
    with pytest.raises(UserError, match="--similarity tokenmax: no such similarity; there are token_max "):
        check_options(SuiteOptions(similarity=("tokenmax",)))
    with pytest.raises(UserError, match="--similarity token_max:many: behind the colon stands one of all content"):
        check_options(SuiteOptions(similarity=("token_max:many",)))


def test_what_rebuilds_without_a_caption_has_no_gap_between_two(small: Path, tmp_path: Path) -> None:
    """It is zero whatever was learned."""
    plain = dataclasses.replace(TRAINED, masking=dataclasses.replace(TRAINED.masking, mim="plain"))
    make_run(tmp_path / "run", plain, tokenizer=squares_tokenizer)
    told = run(small, tmp_path / "out", tmp_path / "run", regions=str(small / "test_regions.json"))["tasks"]["masking"]
    gaps = {name: value for name, value in told["metrics"].items() if "gap_" in name and name.split("_gap_")[0] != "named"}
    assert len(gaps) > 8 and set(gaps.values()) == {None}
    why = "a 'sycoca' model with masked image modelling 'plain' rebuilds nothing by a caption"
    assert {told["null_reasons"][name] for name in gaps} == {why} and told["metrics"]["named_over_unnamed"] is not None
