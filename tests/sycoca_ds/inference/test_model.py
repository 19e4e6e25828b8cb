"""`sycoca_ds.load`: what the evaluation computes, at any batch size, on pictures however they are given."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sycoca_ds
from data_pipeline.errors import UserError
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.pictures import paste, patches_to_picture
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.tasks.captioning import write_captions
from sycoca_ds.eval.tasks.reconstruction import Errors
from sycoca_ds.explore.command import ExploreCommand
from sycoca_ds.inference.model import Model
from sycoca_ds.inference.pictures import read_picture
from sycoca_ds.model.masking.scores import best_match, counted_tokens
from sycoca_ds.model.text_encoder import real_tokens
from tests.worlds.open_clip.world import run_export
from tests.worlds.strangers.awkward_pictures import awkward, turned
from tests.worlds.strangers.hostile_pictures import chunk, encoded, exif, png16, scene
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run

CPU = torch.device("cpu")
PICTURES = 7
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a data set, and its pictures as files."""
    folder = tmp_path_factory.mktemp("inference")
    make_run(folder / "run")
    collection = Collection(make_data(folder / "data", images=PICTURES), SMALL.image.image_size)
    for number in range(PICTURES):
        Image.fromarray(collection.pixels(number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return sycoca_ds.load(folder / "run", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[str]:
    return [str(folder / f"{number}.png") for number in range(PICTURES)]


@pytest.fixture(scope="module")
def bench(model: Model, folder: Path) -> Bench:
    """The evaluation's own, on the same pictures, which are PNGs of what its JPEGs hold."""
    loaded = model.loaded
    options = SuiteOptions(batch_size=3)
    collection = Collection(folder / "data", SMALL.image.image_size)
    return Bench(loaded.model, loaded.config, loaded.tokenizer, collection, CPU, Inputs(options))


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one, other, rtol=0, atol=2e-6)


def test_vectors_are_the_evaluations_at_any_batch_size(model: Model, bench: Bench, files: list[str]) -> None:
    image_IE, text_TE = bench.image_IE.numpy(), bench.text_TE.numpy()
    texts = bench.collection.captions
    for size in (1, 3, 64):
        assert close(model.encode_image(files, batch_size=size), image_IE)
        assert close(model.encode_text(texts, batch_size=size), text_TE)
    assert np.abs(image_IE - image_IE[::-1]).max() > 0.01, "all are alike, so this comparison could not fail"
    assert np.abs(text_TE - text_TE[::-1]).max() > 0.01
    assert close(model.similarity(files, texts), image_IE @ text_TE.T)
    assert model.encode_image(files).dtype == np.float32 and model.encode_image([]).shape == (0, SMALL.embed_dim)
    assert model.similarity(files[0], "one text").shape == (1, 1)


def test_captions_are_the_evaluations_and_come_with_vectors_in_one_pass(
    model: Model, bench: Bench, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_captions(bench)
    assert len(set(expected)) > 1
    for size in (2, 64):
        assert model.caption(files, batch_size=size) == expected
    passes = []
    forward = model.loaded.model.image_encoder.forward
    monkeypatch.setattr(model.loaded.model.image_encoder, "forward", lambda *a, **k: passes.append(len(a[0])) or forward(*a, **k))
    captions, vectors = model.caption_and_embed(files, batch_size=4)
    assert passes == [4, 3]
    assert captions == expected and close(vectors, bench.image_IE.numpy())
    assert model.caption(files, beams=3, batch_size=2) == model.caption(files, beams=3)
    assert model.caption(files, beams=3) != expected
    assert all(one.startswith(short) for one, short in zip(expected, model.caption(files, max_tokens=2), strict=True))


def test_reconstructions_are_the_evaluations(model: Model, bench: Bench, files: list[str]) -> None:
    texts = [captions[0] for captions in bench.collection.captions_of_image]
    other_I = np.roll(np.arange(PICTURES), 1)
    guides = Errors.given(bench, texts, other_I)
    numbers = list(range(PICTURES))
    out = guides.rebuilt(bench, numbers, "attention")
    found = model.reconstruct(files, texts, batch_size=2)
    wrong = model.reconstruct(files, texts, guides=[texts[n] for n in other_I])
    for number, (one, other) in enumerate(zip(found, wrong, strict=True)):
        assert close(np.array(one.error), out["l1_B"][number].numpy())
        assert close(np.array(other.error), out["l1_B"][PICTURES + number].numpy()) and one.error != other.error
        assert np.array_equal(one.hidden.reshape(-1), out["hidden_BN"][number].numpy())
        assert np.array_equal(other.hidden, one.hidden)
        assert close(one.scores.reshape(-1), out["scores_BN"][number].numpy())
        shown = bench.collection.picture(number)
        rebuilt = paste(shown, patches_to_picture(out["pixels_BNP"][number]), one.hidden.reshape(-1))
        assert np.array_equal(one.picture, shown) and np.abs(one.rebuilt.astype(int) - rebuilt).max() <= 1
    random = [model.reconstruct(files, "a text", mask_by="random", seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(random[0][0].hidden, random[1][0].hidden) and not np.array_equal(random[0][0].hidden, random[2][0].hidden)
    assert not np.array_equal(*(one.hidden for one in model.reconstruct([files[0]] * 2, "a text", mask_by="random")))
    assert random[0][0].hidden.sum() == SMALL.image.patches // 2


@pytest.mark.parametrize("similarity", ["token_max", "centred_over_pictures"])
def test_words_have_the_scores_of_their_tokens(similarity: str, model: Model, bench: Bench, files: list[str]) -> None:
    text = "a red circle, don't"
    (one, *_), (again, *_) = (model.attention(files, text, similarity, batch_size=size) for size in (3, 64))
    assert one.words == ["a", "red", "circle", "don't"] and one.word_scores.shape == (4, 6, 6)
    assert close(one.word_scores, again.word_scores)
    text_BL = bench.tokens([text])
    given = {
        "image_BCHW": bench.images([0]),
        "text_CBL": text_BL[None],
        "similarity": similarity,
        "others": bench.others(similarity),
    }
    token_LN = bench.call("token_scores", exact=True, **given)["token_BCLN"][0, 0]
    at = model.loaded.tokenizer.places(text, [(2, 5)], 40)[0]
    assert close(one.word_scores[1].reshape(-1), token_LN[at].max(dim=0).values.numpy())
    counted_BL = counted_tokens(text_BL, real_tokens(text_BL, 2), model.loaded.model.left_out_V)
    assert close(one.scores.reshape(-1), best_match(token_LN[None], counted_BL)[0].numpy())


def test_what_a_model_lacks_is_said_in_one_line(model: Model, folder: Path, files: list[str], tmp_path: Path) -> None:
    make_run(tmp_path / "clip", dataclasses.replace(SMALL, family="clip"))
    clip = sycoca_ds.load(tmp_path / "clip", device="cpu")
    pooled = {"image": dataclasses.replace(SMALL.image, pooling="mean"), "text": dataclasses.replace(SMALL.text, pooling="mean")}
    make_run(tmp_path / "mean", dataclasses.replace(SMALL, **pooled))
    mean = sycoca_ds.load(tmp_path / "mean", device="cpu")
    assert clip.encode_image(files[0]).shape == (1, SMALL.embed_dim)
    for call, said in (
        (lambda: clip.caption(files), r"captions: the model in .* \(clip\) has no text decoder"),
        (lambda: clip.reconstruct(files, "x"), "has no image decoder"),
        (lambda: clip.attention(files, "x", "cross_attention"), "no scores of words with this model; expected one of"),
        (lambda: model.attention(files, "x", WITHOUT_WORDS[0]), "no scores of words"),
        (lambda: mean.attention(files, "x", "value_path"), "no scores of words with this model; expected one of token_max, "),
        (lambda: model.attention(files, ["x", "y"]), "2 texts for 7 pictures: expected one each, or one for all"),
        (lambda: model.reconstruct(files, "x", mask_by="luck"), "mask_by = 'luck': expected attention or random"),
        (lambda: model.encode_image(files, batch_size=0), "batch_size = 0: expected a whole number"),
        (lambda: model.caption(files, max_tokens=0), "max_tokens = 0"),
        (lambda: model.encode_text([3]), "a text of type int: expected a string"),
        (lambda: model.encode_text(None), "a text of type NoneType: expected a string, or a list of them"),
        (lambda: model.encode_text(b"text"), "a text of type bytes: expected a string"),
        *(
            (
                lambda wrong=wrong: model.encode_image(wrong),
                f"a picture of type {type(wrong).__name__}: expected a file's path",
            )
            for wrong in (3, None, io.BytesIO(b"x\ny"), bytearray(b"x"), memoryview(b"x"), {"a.png": 1}, torch.tensor(1))
        ),
        (lambda: model.encode_image([files[0], None]), "a picture of type NoneType"),
        (lambda: model.encode_image(torch.zeros(2, 3, 9, 9)), "a picture of type Tensor"),
        (lambda: model.encode_image([[files[0]]]), "a picture of type list"),
        *(
            (lambda beams=beams: model.caption(files, beams=beams), re.escape(f"beams = {beams!r}: expected a whole number"))
            for beams in (True, 1.5, "4", 0)
        ),
        (lambda: sycoca_ds.load(folder / "run", device="quantum"), "--device quantum: expected auto"),
        (lambda: sycoca_ds.load(folder / "nothing"), "no finished checkpoint in .*: no such folder"),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_exported_folders_answer_as_their_run_and_lack_of_a_tokenizer_is_told(
    model: Model, folder: Path, files: list[str], tmp_path: Path
) -> None:
    assert run_export(folder / "run", "--to", "hf-folder", "--out", tmp_path / "hub") == 0
    hub = sycoca_ds.load(tmp_path / "hub", device="cpu")
    assert np.array_equal(hub.encode_image(files), model.encode_image(files))
    assert np.array_equal(hub.encode_text(["a red circle"]), model.encode_text(["a red circle"]))
    assert hub.caption(files) == model.caption(files) and hub.step == 7 and "hub" in repr(hub)


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    for step in (7, 9):
        make_run(run, step=step)
    assert sycoca_ds.load(run, device="cpu").step == 9 and not caplog.messages
    weights = run / "checkpoints/step_00000009/mp_rank_00_model_states.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert sycoca_ds.load(run, device="cpu").step == 7
    assert [message.partition(" is damaged")[0] for message in caplog.messages] == [f"passed over a damaged checkpoint: {weights}"]


def test_a_folder_for_open_clip_is_told_from_no_folder_at_all(folder: Path, tmp_path: Path) -> None:
    """Whatever opens weights says what it is, and the way back."""
    theirs = tmp_path / "theirs"
    assert run_export(folder / "run", "--to", "open_clip", "--out", theirs) == 0
    with pytest.raises(UserError, match=r"holds weights for open_clip's own commands .*--to safetensors`.*") as error:
        sycoca_ds.load(theirs, device="cpu")
    assert str(error.value).endswith(f"turn these back with `sycoca export --from-open-clip {theirs} --out FOLDER`")
    assert run_export("--from-open-clip", theirs, "--out", tmp_path / "back") == 0
    assert sycoca_ds.load(tmp_path / "back", device="cpu").family == "coca"
    with pytest.raises(UserError, match="for open_clip's own commands"):
        ExploreCommand(checkpoint=str(theirs), device="cpu", port=0).run()


def test_texts_beyond_the_context_are_told(model: Model) -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than this model's 40 tokens and are cut, for example 'red red"):
        cut = model.encode_text(["a scene", "red " * 60])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(model.encode_text("a scene"), cut[:1])


# ---- pictures however they are given -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", awkward())
def test_awkward_pictures_are_seen_as_they_look(name: str, tmp_path: Path) -> None:
    """Files, bytes and Pillow's images of greys, palettes, CMYK, opacity, 16 bits, EXIF's orientations."""
    data, shown = awkward()[name]
    (tmp_path / name).write_bytes(data)
    picture = read_picture(tmp_path / name)
    assert picture.shape == shown.shape and picture.dtype == np.uint8 and np.abs(picture.astype(float) - shown).mean() < 2
    assert np.array_equal(read_picture(data), picture)
    other = ("grey16.tif", "rgb16.tif", "text.png", "profile.png", "ycck.jpg", "tagged.jpg")
    if name.endswith((".jp2", ".avif")) or name in other:
        return  # Pillow itself gives other pixels of these, or refuses them
    opened = read_picture(Image.open(io.BytesIO(data)))
    assert opened.shape == shown.shape and np.abs(opened.astype(float) - shown).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_turned_picture_is_the_same_as_a_file_opened_and_loaded(kind: str, orientation: int, tmp_path: Path) -> None:
    """Pillow turns a TIFF itself, while it loads it."""
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "picture"
    path.write_bytes(encoded(scene(), kind, exif=exif(orientation), **options))
    loaded = Image.open(path)
    loaded.load()
    read = [read_picture(one) for one in (path, path.read_bytes(), Image.open(path), loaded, loaded.copy())]
    assert all(np.array_equal(one, read[0]) for one in read)
    assert np.abs(read[0].astype(int) - turned(scene(), orientation)).mean() < (2 if kind == "JPEG" else 0.1)


def test_only_exif_turns_a_picture_as_in_training() -> None:
    """Pillow also believes XMP."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for kind in ("JPEG", "WEBP"):
        data = encoded(scene(), kind, xmp=xmp)
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
        assert read_picture(Image.open(io.BytesIO(data))).shape == read_picture(data).shape == scene().shape


def test_the_clear_colour_of_deep_pngs_is_white_however_they_are_given() -> None:
    grey, colours = np.array([[0x0102, 0x0103]], np.uint16)[..., None], np.array([[[0x3001] * 3, [0x0500] * 3]], np.uint16)
    for data, expected in (
        (with_clear(png16(grey), [0x0102]), [255, 1]),
        (with_clear(png16(colours), [0x3001] * 3), [255, 5]),
    ):
        loaded = Image.open(io.BytesIO(data))
        loaded.load()
        for one in (data, Image.open(io.BytesIO(data)), loaded, loaded):
            assert read_picture(one).tolist() == [[[value] * 3 for value in expected]]


def with_clear(data: bytes, colour: list[int]) -> bytes:
    """A PNG in which one colour is clear."""
    return data[:33] + chunk(b"tRNS", struct.pack(f">{len(colour)}H", *colour)) + data[33:]


def test_arrays_are_rgb_rgba_or_grey() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    grey, clear = rgb[..., 0], np.zeros((8, 9, 1), np.uint8)
    assert np.array_equal(read_picture(rgb), rgb)
    assert np.array_equal(read_picture(grey), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read_picture(grey[..., None]), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read_picture(np.concatenate([rgb, clear + 255], 2)), rgb)
    assert (read_picture(np.concatenate([rgb, clear], 2)) == 255).all()
    for wrong in (rgb.astype(np.float32), rgb[..., :2], rgb[None][:, :0], np.zeros((0, 3, 3), np.uint8)):
        with pytest.raises(ValueError, match=re.escape("expected uint8 (H, W) or (H, W, 1, 3 or 4), RGB or RGBA")):
            read_picture(wrong)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_pictures_that_pillow_has_made_are_taken_as_those_that_it_opened(mode: str) -> None:
    made = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)).convert(mode)
    if mode in ("RGBA", "LA"):
        made.putalpha(Image.new("L", made.size, 128))
    flat = Image.alpha_composite(Image.new("RGBA", made.size, "white"), made.convert("RGBA")).convert("RGB")
    assert np.abs(read_picture(made).astype(int) - np.asarray(flat)).max() <= 1
    assert np.array_equal(read_picture(made), read_picture(made.copy()))


def test_pictures_that_cannot_be_read_are_named(model: Model, files: list[str], tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    whole = io.BytesIO()
    Image.open(files[0]).convert("RGB").resize((300, 300)).save(whole, "JPEG")
    cut.write_bytes(whole.getvalue()[:-500])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for path, why in (
        (cut, "truncated image"),
        (tmp_path / "text.jpg", "not an image"),
        (tmp_path / "empty.png", "is empty"),
        (tmp_path / "nothing.jpg", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: no picture that can be read \(.*{why}") as error:
            model.encode_image([*files[:2], path])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="picture 1: no picture that can be read"):
        model.encode_image([Image.new("RGB", (9, 9)), Image.new("F", (9, 9))])


def test_without_torch_loading_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sycoca_ds.inference.model")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"^torch is not installed for .*`pip install -e '\.\[all\]'`"):
        sycoca_ds.load("x")
