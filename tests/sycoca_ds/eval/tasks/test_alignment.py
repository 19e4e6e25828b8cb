"""The task alignment from end to end: on models of which it is known what they find, and on a real checkpoint, against direct
calls, with its page."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.config import MaskingConfig, TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.eval.alignment.naming import TEMPLATES, Namer, background_of
from sycoca_ds.eval.alignment.segmenting import MEASURES, areas, confusion, measures
from sycoca_ds.eval.alignment.wording import NUMBERS
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.regions.patches import read_regions
from sycoca_ds.eval.regions.segments import read_segments
from sycoca_ds.eval.runner.bench import Bench, Inputs, Resources
from sycoca_ds.eval.runner.cache import Cache
from sycoca_ds.eval.task import Outcome
from sycoca_ds.eval.tasks.alignment import run_alignment
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.data.named_squares import COLOURS, ENTRIES, PATCH, Knowing, draw_squares, squares_tokenizer, write_squares
from tests.worlds.trainings.eval_world import SMALL, made_of_pictures, make_run

pytestmark = pytest.mark.slow

PICTURES = 40
MODEL = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, vocab_size=ENTRIES), masking=MaskingConfig(high_ratio=0.4))
SCALE = 20.0
HALF = math.exp(SCALE / 4) / (math.exp(SCALE / 4) + len(COLOURS) - 1)
"""Probability of a class of which a pixel has half: there the background begins."""


class Matching(Knowing):
    """Knows colours by features, too: a patch and a token are the unit vectors of theirs, a word that is no colour is zero."""

    def __init__(self, words: dict[int, set[str]], kind: str):
        super().__init__(words, kind)
        self.logit_scale = torch.nn.Parameter(torch.tensor([math.log(SCALE)]))

    def forward(self, task: str, image_BCHW=None, text_BL=None, words_BL=None, **rest) -> torch.Tensor:
        if task == "token_scores":
            return super().forward(task, image_BCHW, **rest)
        if task == "grad_cam":
            assert not torch.is_inference_mode_enabled()
            score_BLN = self.tokens(image_BCHW, text_BL)
            return (score_BLN if words_BL is None else score_BLN * words_BL[..., None]).amax(1)
        if task == "patch_features":
            if self.kind == "noise":
                seed = int(image_BCHW.abs().sum() * 1000)
                return torch.randn(len(image_BCHW), 36, len(COLOURS), generator=torch.Generator().manual_seed(seed))
            colour_K = torch.tensor([next(t for t, names in self.words.items() if colour in names) for colour in COLOURS])
            score_BKN = Knowing(self.words, "named").tokens(image_BCHW, colour_K.expand(len(image_BCHW), -1))
            if self.kind == "objects":
                score_BKN = score_BKN.amax(1, keepdim=True).expand_as(score_BKN)
            return score_BKN.transpose(1, 2)
        token_BLE = torch.zeros(*text_BL.shape, len(COLOURS))
        for row, text_L in enumerate(text_BL.tolist()):
            for place, token in enumerate(text_L):
                for colour in self.words.get(token, ()):
                    token_BLE[row, place, list(COLOURS).index(colour)] = 1
        return token_BLE if task == "token_features" else F.normalize(token_BLE.sum(1), dim=-1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alignment")
    write_squares(folder, draw_squares(PICTURES))
    squares_tokenizer(folder / "tokenizer.json")
    make_run(folder / "run", MODEL, tokenizer=squares_tokenizer)
    return folder


def words_of(tokenizer: Tokenizer) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for colour in COLOURS:
        caption = f"a {colour} square"
        (places,) = tokenizer.places(caption, [(2, 2 + len(colour))], 40)
        (token,) = (int(tokenizer.encode([caption], 40)[0, place]) for place in places)
        found[token] = {colour}
    return found


def bench_of(world: Path, model: torch.nn.Module | str, **options) -> Bench:
    tokenizer, data = Tokenizer(world / "tokenizer.json"), Collection(world / "data", 48)
    if isinstance(model, str):
        model = Matching(words_of(tokenizer), model)
    regions = read_regions(world / "test_regions.json", data, tokenizer, PATCH, 40)
    segments = read_segments(world / "test_regions.json", data)
    inputs = Inputs(SuiteOptions(batch_size=16, background=str(HALF), **options), regions=regions, segments=segments)
    return Bench(model, TrainConfig(model=MODEL), tokenizer, data, torch.device("cpu"), inputs)


def known(world: Path, kind: str) -> Outcome:
    outcome = run_alignment(bench_of(world, kind))
    assert set(NUMBERS) == set(outcome.numbers) | set(outcome.reasons) and not set(outcome.numbers) & set(outcome.reasons)
    return outcome


def test_a_model_that_knows_everything_reaches_everything(world: Path) -> None:
    outcome = known(world, "named")
    found = outcome.numbers
    for how in ("", "gradcam_", "gradcam_likelihood_"):
        assert found[f"{how}pointing"] == found[f"{how}word_iou"] == found[f"{how}pointing_low"] == 1.0
        assert found[f"other_{how}pointing"] < 0.35, "what another caption names is elsewhere, or not there"
        assert found[f"untrained_{how}pointing"] < 0.5 and outcome.chance[f"{how}pointing"] == pytest.approx(4 / 36)
    assert found["objects_miou"] == found["objects_pixel_accuracy"] == found["objects_miou_low"] == 100
    assert found["shuffled_objects_miou"] == 0 and found["untrained_objects_miou"] < 25
    expected = 0
    for square in draw_squares(PICTURES):
        patch = square.labels[::PATCH, ::PATCH]
        share = [np.array(Image.fromarray((patch == k).astype(np.float32)).resize((48, 48), Image.BILINEAR)) for k in range(1, 5)]
        odds = np.exp(SCALE / 2 * np.array(share))  # "square" is half of each name, and says nothing
        sure = odds.max(0) / (odds.sum(0) + len(COLOURS) - 4) >= HALF
        guess = np.where(sure, np.argmax(share, 0) + 1, 0)
        order = np.array([0, *(1 + sorted(COLOURS).index(colour) for colour in square.colours)])
        expected = expected + areas(confusion(order[square.labels], order[guess], len(COLOURS) + 1))
    assert found["miou"] == pytest.approx(float(measures(expected)["miou"]), abs=0.3) and 85 < found["miou"] < 100
    assert found["shuffled_miou"] < 15 and {row["class"] for row in outcome.details["per_class"]} == {
        "background",
        *(f"{colour} square" for colour in COLOURS),
    }


def test_a_model_that_finds_objects_only_cannot_name_them(world: Path) -> None:
    outcome = known(world, "objects")
    assert outcome.numbers["pointing"] == outcome.numbers["gradcam_pointing"] == pytest.approx(4 / 16)
    assert outcome.numbers["pointing"] == outcome.numbers["other_pointing"]
    one = outcome.details["without_looking"]["objects_"]["constant"]
    assert outcome.numbers["objects_miou"] <= one["miou"] + 1e-9, "all are called the same"


def test_noise_comes_to_chance(world: Path) -> None:
    outcome = known(world, "noise")
    found, random = outcome.numbers, outcome.details["without_looking"]
    for how in ("", "gradcam_", "gradcam_likelihood_"):
        for measure in ("pointing", "word_iou"):
            wide = found[f"{how}{measure}_high"] - found[f"{how}{measure}_low"]
            assert found[f"{how}{measure}"] == pytest.approx(outcome.chance[f"{how}{measure}"], abs=wide), "four standard errors"
    for under in ("", "shuffled_"):
        assert found[f"{under}objects_miou"] == pytest.approx(random["objects_"]["random"]["miou"], abs=2)
        assert found[f"{under}objects_pixel_accuracy"] == pytest.approx(100 / 8, abs=3)


def test_what_is_done_is_found_again_after_a_kill(world: Path, tmp_path: Path) -> None:
    resources = Resources(cache=Cache(tmp_path))
    first = dataclasses.replace(bench_of(world, "noise"), resources=resources, weights="these")
    expected = run_alignment(first)

    class Gone(Matching):
        def forward(self, task: str, image_BCHW=None, **rest) -> torch.Tensor:
            assert task not in ("patch_features", "grad_cam") or len(image_BCHW) < 8, "only the report's pictures are looked at"
            return super().forward(task, image_BCHW, **rest)

    again = dataclasses.replace(bench_of(world, Gone(first.model.words, "noise")), resources=resources, weights="these")
    assert run_alignment(again).numbers == expected.numbers


def test_classes_score_as_their_tokens_do(world: Path) -> None:
    """Against the task that scores captions, a prompt at a time."""
    loaded = load_for_inference(world / "run")
    for similarity in ("token_max", "centred_token_max", "value_path"):
        bench = bench_of(world, loaded.model)
        namer = Namer.of(bench, loaded.model, ("red square", "blue square"), background_of("a wall, sky"), similarity)
        image, found_BKN = bench.images(range(3)), namer.scores(bench, [0, 1, 2])
        for row, name in enumerate(("a wall", "sky", "red square", "blue square")):
            expected_BN = torch.zeros(3, 36)
            for template in TEMPLATES:
                prompt = template.replace("{c}", name)
                (places,) = bench.tokenizer.places(prompt, [(template.index("{c}"), len(prompt))], 40)
                text = bench.ids([prompt]).expand(3, -1)[:, None]
                given = {"image_BCHW": image, "text_CBL": text.transpose(0, 1), "similarity": similarity}
                with torch.no_grad():
                    expected_BN += loaded.model("token_scores", **given)["token_BCLN"][:, 0, places].mean(1) / len(TEMPLATES)
            torch.testing.assert_close(found_BKN[:, row], expected_BN, rtol=1e-4, atol=1e-5)


def run(world: Path, out: Path, **options: object) -> dict:
    words = {"device": "cpu", "precision": "fp32", "gallery": 3, "tasks": ("masking", "alignment"), **options}
    assert evaluate(EvaluateConfig(str(world / "run"), str(world / "data"), out=str(out), **words)) == 0
    return json.loads((out / "results.json").read_text())


def test_a_checkpoint_s_numbers_and_page(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ("global", "cross_attention", "token_max:all")
    results = run(world, tmp_path, regions=str(world / "test_regions.json"), similarity=asked)
    record, masking = (results["tasks"][task] for task in ("alignment", "masking"))
    made = made_of_pictures(tmp_path, "alignment")
    assert {f"{under}{kind}{name}" for under in ("", "untrained_") for kind in ("", "objects_") for name in MEASURES} <= made
    assert "word_iou" in made and record["intervals"]["objects_miou"] == [
        record["metrics"][f"objects_miou_{side}"] for side in ("low", "high")
    ]
    for name in ("pointing", "other_pointing", "untrained_pointing", "word_iou", "pointing_low", "other_word_iou_high"):
        assert record["metrics"][name] == masking["metrics"][name] is not None, "one piece of code"
    similarities = record["details"]["similarities"]
    assert set(similarities) == {*asked, "token_max"} and "pointing" not in similarities["global"]
    assert "which word a patch" in record["details"]["similarities_left_out"]["cross_attention, of classes"]
    loaded, data, hits = load_for_inference(world / "run"), Collection(world / "data", 48), []
    for number, square in enumerate(draw_squares(PICTURES)):
        text = torch.from_numpy(loaded.tokenizer.encode([f"{colour} square" for colour in square.colours[:2]], 40))
        own = torch.from_numpy(loaded.tokenizer.encode([square.caption], 40))[0].tolist()
        for place, _ in enumerate(square.colours[:2], 1):  # in their caption words begin with a space: other tokens than alone
            start = 2 + 4 * (place - 1)
            text[place - 1, :4] = torch.tensor([own[0], own[start], own[start + 1], loaded.config.model.text.eot_id])
            text[place - 1, 4:] = 0
        map_QN = loaded.model("grad_cam", image_BCHW=data.image(number)[None].expand(2, -1, -1, -1), text_BL=text)
        labels = square.labels[::PATCH, ::PATCH].reshape(-1)
        for place, map_N in enumerate(map_QN, 1):
            hits.append((labels[(map_N == map_N.max()).numpy()] == place).mean())
    assert record["metrics"]["gradcam_pointing"] == pytest.approx(np.mean(hits), abs=0.02)
    page, said = (tmp_path / "report.html").read_text(), " ".join(capsys.readouterr().out.split())
    assert page.count('alt="Grad-CAM"') == page.count('alt="Grad-CAM, log-probability"') == page.count('alt="what it names"') == 6
    assert page.count('alt="annotated"') == page.count('alt="by names"') == 3
    for line in record["details"]["told"]:
        assert line in said and line.replace("'", "&#39;") in page
    assert "mIoU of" in said and len(record["details"]["told"]) == 4


def test_without_regions_there_are_maps_of_words_and_the_reason(world: Path, tmp_path: Path) -> None:
    record = run(world, tmp_path, tasks=("alignment",))["tasks"]["alignment"]
    assert set(record["null_reasons"].values()) == {"no --regions FILE_OR_FOLDER was given"}
    page = (tmp_path / "report.html").read_text()
    assert page.count('alt="Grad-CAM"') == 6 and 'alt="what it names"' not in page


@pytest.mark.parametrize("wrong", ["", " , ", "0", "1", "-0.5", "2"])
def test_a_background_is_words_or_a_probability(wrong: str) -> None:
    with pytest.raises(UserError, match="expected words with commas between, or a probability between 0 and 1"):
        background_of(wrong)
    assert background_of("sky, a wall").words == ("sky", "a wall") and background_of("0.4").threshold == 0.4
