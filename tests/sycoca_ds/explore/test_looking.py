"""What the page shows of a sample is what the evaluation's tasks give for it; what a model lacks is said in a sentence."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sycoca_ds.config import MaskingConfig, ModelConfig
from sycoca_ds.engine.checkpoint.exported import new_folder, write_exported
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.masking.asking import scores
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.stats.recalls import retrieve
from sycoca_ds.eval.tasks.captioning import write_captions
from sycoca_ds.eval.tasks.reconstruction import Errors
from sycoca_ds.explore.keeper import Compared, Held
from sycoca_ds.explore.looking import PARTS, Decoding, Looking, Question, answers
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run
from tests.worlds.trainings.explored import asked, open_here, opened

PICTURES = 9
CENTRED = dataclasses.replace(SMALL, masking=MaskingConfig(similarity="centred_over_pictures"))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.* longer than this model")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore")
    make_data(folder / "data", images=PICTURES)
    make_run(folder / "run")
    return folder


@pytest.fixture(scope="module")
def looked(folder: Path) -> tuple[Held, Compared]:
    return opened(folder / "run", folder / "data")


def bench_of(held: Held, folder: Path, **options) -> Bench:
    """The evaluation's own."""
    loaded = held.model.loaded
    collection = Collection(folder / "data", SMALL.image.image_size)
    given = Inputs(SuiteOptions(batch_size=4, **options))
    return Bench(loaded.model, loaded.config, loaded.tokenizer, collection, torch.device("cpu"), given)


def pixels(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_numbers_of_a_sample_are_the_evaluations(looked: tuple[Held, Compared], folder: Path) -> None:
    held, compared = looked
    bench = bench_of(held, folder, caption_tokens=12)
    data, samples = bench.collection, compared.samples
    found = retrieve(bench.image_IE, bench.text_TE, torch.from_numpy(data.image_of_text_T))
    errors = Errors.given(bench, [captions[0] for captions in data.captions_of_image], samples.other_I)
    error = bench.map_images(errors, "rebuild", {})
    greedy = write_captions(bench)
    beams = write_captions(bench_of(held, folder, caption_tokens=12, beams=3))
    cosine_IT = (bench.image_IE @ bench.text_TE.T).numpy()
    for number in range(PICTURES):
        looking = asked(held, compared, number)
        assert looking.question.other == data.captions[samples.other_I[number]] != looking.question.caption
        cosines = looking.similarity()["cosines"]
        assert np.allclose(cosines, cosine_IT[number, [number, samples.other_I[number]]], rtol=0, atol=2e-6)
        ranks = looking.ranks()
        assert (ranks["captions"], ranks["pictures"]) == (PICTURES, PICTURES)
        assert ranks["ranks"][0] == {"caption": found.i2t_rank_I[number] + 1, "picture": found.t2i_rank_T[number] + 1}
        order = np.argsort(-cosine_IT[number], kind="stable")
        assert [one["text"] for one in ranks["nearest"]] == [data.captions[place] for place in order[:6]]
        assert [one["own"] for one in ranks["nearest"]] == [place == number for place in order[:6]]
        rebuilt = looking.reconstruction()["rebuilt"]
        assert np.allclose([one["error"] for one in rebuilt], [error["own"][number], error["other"][number]], rtol=1e-5)
        written = looking.captions()["written"]
        assert [(one["beams"], one["text"]) for one in written] == [(1, greedy[number]), (3, beams[number])]
    assert len(set(found.i2t_rank_I)) > 3 and any(one != two for one, two in zip(greedy, beams, strict=True)), "says nothing"


def test_places_of_other_texts(looked: tuple[Held, Compared], folder: Path) -> None:
    """Another sample's caption has its own place; a text that no picture has is put behind the captions."""
    held, compared = looked
    bench, samples = bench_of(held, folder), compared.samples
    cosine_IT = (bench.image_IE @ bench.text_TE.T).numpy()
    ranks = asked(held, compared, 2, "a text that nobody wrote", samples.caption(5)).ranks()["ranks"]
    order = np.argsort(-cosine_IT[2], kind="stable").tolist()
    assert ranks[1]["caption"] == order.index(5) + 1
    text_E = held.model.encode_text("a text that nobody wrote")[0]
    assert ranks[0]["caption"] == 1 + int((cosine_IT[2] > bench.image_IE[2].numpy() @ text_E).sum())
    toward_I = bench.image_IE.numpy() @ text_E
    assert ranks[0]["picture"] == 1 + int((toward_I > toward_I[2]).sum())


def test_words_and_masks_are_the_models(looked: tuple[Held, Compared]) -> None:
    held, compared = looked
    looking = asked(held, compared, 3, "a red ring and a square", "nothing but blue")
    picture, texts = looking.question.picture, [looking.question.caption, looking.question.other]
    words = looking.words()
    for shown, one in zip(words["captions"], held.model.attention([picture] * 2, texts), strict=True):
        assert shown["words"] == one.words
        assert np.allclose(shown["scores"], one.word_scores.reshape(len(one.words), -1), rtol=0, atol=6e-6)
    masks, found = looking.masks(), held.model.masks([picture] * 2, texts)
    assert masks["patches"] == 36 and masks["mim"]["hidden"] == masks["captioning"]["hidden"] == 18
    side = SMALL.image.image_size // SMALL.image.patch_size
    for name in ("mim", "captioning"):
        hidden = [getattr(one, name) for one in found]
        assert masks[name]["same"] == pytest.approx((hidden[0] & hidden[1]).mean() / 0.5)
        for uri, mask in zip(masks[name]["pictures"], hidden, strict=True):
            changed = (pixels(uri) != picture).any(axis=-1).reshape(side, 8, side, 8).any(axis=(1, 3))
            assert (changed == mask).all()
    seen = (pixels(looking.reconstruction()["seen"]) != picture).any(axis=-1).reshape(side, 8, side, 8).any(axis=(1, 3))
    assert (seen == found[0].mim).all()


def test_neighbours_are_the_nearest_others(looked: tuple[Held, Compared], folder: Path, tmp_path: Path) -> None:
    from sycoca_ds.inference.index import update

    held, compared = looked
    samples, image_IE = compared.samples, held.vectors.image_IE.numpy()
    found = asked(held, compared, 4).neighbours()
    order = [number for number in np.argsort(-(image_IE @ image_IE[4]), kind="stable").tolist() if number != 4][:6]
    assert [one["text"] for one in found["samples"]] == [samples.caption(number) for number in order]
    assert np.allclose([one["cosine"] for one in found["samples"]], image_IE[order] @ image_IE[4], rtol=0, atol=2e-6)
    assert (pixels(found["samples"][0]["picture"]) == samples.collection.pixels(order[0])).all()
    for number in range(3):
        Image.fromarray(samples.collection.pixels(number)).save(tmp_path / f"{number}.png")
    with_folder = dataclasses.replace(compared, folder=tmp_path)
    waits = next(answers(asked(held, with_folder, 1), ("neighbours",)))
    assert (
        waits["wait"]
        and [one["text"] for one in waits["samples"]][:3]
        == [one["text"] for one in asked(held, compared, 1).neighbours()["samples"]][:3]
    )
    assert waits["folder_lack"] == f"The pictures in {tmp_path} are still being looked at." and "folder" not in waits
    indexed = dataclasses.replace(held, index=update(held.model, tmp_path, None, 4))
    found = asked(indexed, with_folder, 1).neighbours()
    listed = found["folder"]["pictures"]
    assert listed[0]["text"] == "1.png" and listed[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert len(listed) == 3 and found["folder"]["note"] == "" and found["folder_name"] == str(tmp_path)
    (tmp_path / "1.png").unlink()
    left = asked(indexed, with_folder, 1).neighbours()
    assert left["folder"]["pictures"] == listed[1:] and left["samples"] == found["samples"]
    assert left["folder"]["note"] == "Not shown, since it cannot be read any more: 1.png (No such file or directory)."


def test_scores_that_look_at_other_pictures_look_at_the_samples(folder: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", CENTRED)
    held, compared = opened(tmp_path / "run", folder / "data")
    bench, samples = bench_of(held, folder), compared.samples
    first = [captions[0] for captions in bench.collection.captions_of_image]
    score_IN = scores(bench, first, samples.other_I, "centred_over_pictures", bench.model)[:, 0, 0].numpy()
    alone = held.model.masks(samples.collection.picture(1), first[1])[0]
    among = asked(held, compared, 1)._among().masks(samples.collection.picture(1), first[1])[0]
    assert np.allclose(among.scores.ravel(), score_IN[1], rtol=0, atol=2e-6)
    assert not np.allclose(alone.scores.ravel(), score_IN[1], atol=1e-3), "alone it is the same, so this could not fail"
    stranger = 255 - samples.collection.picture(1)
    together = held.model.masks([*map(samples.collection.picture, range(PICTURES)), stranger], "a red ring")[-1]
    question = Question(stranger, None, "a red ring", "")
    found = Looking(held, compared, question, Decoding())._among().masks(stranger, "a red ring")[0]
    assert np.allclose(found.scores, together.scores, rtol=0, atol=2e-6)


def said(held: Held, compared: Compared, picture: np.ndarray) -> dict[str, str]:
    """What stands in the place of parts that are lacking."""
    found = answers(Looking(held, compared, Question(picture, None, "a red ring", "a blue one"), Decoding(2, 8)), PARTS)
    lines = json.loads(json.dumps(list(found), allow_nan=False))
    assert [line["part"] for line in lines] == list(PARTS) and not any(line.get("failed") for line in lines)
    return {line["part"]: line["lacks"] for line in lines if "lacks" in line}


@pytest.mark.parametrize(
    "change, lacking",
    [
        ({"family": "clip"}, {"captions": "no text decoder", "reconstruction": "no image decoder", "masks": "without masks"}),
        ({"family": "coca"}, {"reconstruction": "no image decoder", "masks": "without masks"}),
        ({"masking": MaskingConfig(mim="none")}, {"reconstruction": "masking.mim = none"}),
        ({"masking": MaskingConfig(mim="plain")}, {}),
        ({"masking": MaskingConfig(mask_by="random", similarity="saliency")}, {}),
        ({"masking": MaskingConfig(low_ratio=0.0, similarity="global")}, {}),
    ],
    ids=["clip", "coca", "no-mim", "plain", "random-saliency", "nothing-hidden-from-captioning"],
)
def test_what_a_family_lacks_is_said(change: dict, lacking: dict[str, str], folder: Path, tmp_path: Path) -> None:
    model: ModelConfig = dataclasses.replace(SMALL, **change)
    make_run(tmp_path / "run", model)
    held, compared = opened(tmp_path / "run", folder / "data")
    picture = compared.samples.collection.picture(0)
    found = said(held, compared, picture)
    assert found.keys() == lacking.keys()
    assert all(lacking[part] in sentence and sentence.startswith("This is a ") for part, sentence in found.items())
    looking = asked(held, compared, 0)
    if model.masking.mim == "plain":
        one, two = looking.reconstruction()["rebuilt"]
        assert one == two and "without reading" in looking.reconstruction()["note"]
    if model.masking.similarity in ("saliency", "global"):
        assert "knows no words" in looking.words()["note"] and looking.words()["similarity"] == "token_max"
    if model.masking.low_ratio == 0:
        assert looking.masks()["captioning"] is None and looking.masks()["mim"]["hidden"] == 18
    if model.masking.mask_by == "random":
        assert "by chance" in looking.masks()["note"]


def test_without_validation_data_or_tokenizer(folder: Path, tmp_path: Path) -> None:
    picture = Collection(folder / "data", SMALL.image.image_size).picture(0)
    held, compared = opened(folder / "run")
    assert said(held, compared, picture) == dict.fromkeys(("ranks", "neighbours"), compared.why)
    assert compared.why.startswith("This run has no data.validation")
    loaded = held.model.loaded
    for name, tokenizer in (("exported", loaded.folder / "tokenizer.json"), ("wordless", None)):
        with new_folder(tmp_path / name) as new:
            source = {"kind": "test", "step": 7, "samples": 14}
            write_exported(new, loaded.config.model, loaded.model.state_dict(), tokenizer, source)
    held, compared = opened(tmp_path / "exported")
    assert compared.why.startswith("This is an exported folder")
    assert said(held, compared, picture) == dict.fromkeys(("ranks", "neighbours"), compared.why)
    lacks = said(*opened(tmp_path / "wordless"), picture)
    assert "tokenizer.json" in lacks["similarity"] and lacks.keys() == set(PARTS)


def test_a_run_whose_validation_data_is_gone(folder: Path, tmp_path: Path) -> None:
    from sycoca_ds.explore.samples import find_samples

    model = open_here(folder / "run")
    config = dataclasses.replace(model.loaded.config, data=dataclasses.replace(model.loaded.config.data, validation="gone/val"))
    model.loaded.__dict__["config"] = config
    samples, why = find_samples(model, None, 0)
    assert samples is None and "gone/val" in why and "--data FOLDER" in why


def test_only_the_first_pictures_are_compared_with(folder: Path) -> None:
    held, compared = opened(folder / "run", folder / "data", compared=4)
    assert len(held.vectors.image_IE) == len(held.vectors.text_TE) == 4
    for number in (1, 7):
        ranks = asked(held, compared, number).ranks()
        assert (ranks["captions"], ranks["pictures"]) == (4, 4)
    assert len(asked(held, compared, 7).neighbours()["samples"]) == 4


def test_a_diverged_model_is_named(folder: Path, tmp_path: Path) -> None:
    held, compared = opened(folder / "run", folder / "data")
    with torch.no_grad():
        held.model.loaded.model.image_decoder.head.weight.fill_(float("nan"))
    line = next(answers(asked(held, compared, 0), ("reconstruction",)))
    assert "not finite" in line["lacks"]
