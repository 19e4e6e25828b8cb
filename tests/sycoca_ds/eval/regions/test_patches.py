"""Regions as patches: the crop of the pictures themselves, who belongs to what, which pictures match, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import eval_image
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.regions.annotated import Annotated, Thing
from sycoca_ds.eval.regions.patches import (
    BACKGROUND,
    NAMED,
    NAMED_BACKGROUND,
    NONE,
    UNNAMED,
    kinds_of,
    patch_shares,
    read_regions,
)
from tests.worlds.data.named_squares import draw_squares, write_regions, write_squares
from tests.worlds.trainings.eval_world import make_tokenizer

SIZES = [(48, 48), (97, 64), (64, 301), (480, 640), (31, 33), (24, 500), (1, 90), (700, 20)]


def a_mask(height: int, width: int, seed: int) -> np.ndarray:
    """A box and a disc, somewhere."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (y - random.integers(height)) ** 2 + (x - random.integers(width)) ** 2 < (0.3 * min(height, width)) ** 2
    top, left = random.integers(height), random.integers(width)
    return disc | ((y >= top) & (y < top + height // 2) & (x >= left) & (x < left + width // 2))


@pytest.mark.parametrize("size", SIZES)
def test_masks_go_the_way_of_their_pictures(size: tuple[int, int]) -> None:
    """A picture that shows the mask in white on black, through the pictures' own transform: brightness of its patches."""
    masks = np.stack([a_mask(*size, seed) for seed in range(4)])
    found = patch_shares(masks, 48, 8)
    for mask, share_N in zip(masks, found, strict=True):
        shown = eval_image(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), 48).float().mean(0) / 255
        bright = [shown[row : row + 8, column : column + 8].mean().item() for row in range(0, 48, 8) for column in range(0, 48, 8)]
        assert share_N == pytest.approx(bright, abs=1e-6)


@pytest.mark.parametrize("size", [(96, 96), (200, 96), (96, 480)])
def test_shares_are_those_of_the_pixels_below_a_patch(size: tuple[int, int]) -> None:
    """By counting pixels of the annotated picture, where the crop falls on whole ones; bicubic edges differ by little."""
    mask = a_mask(*size, seed=3)
    height, width = size
    top, left = (height - 96) // 2, (width - 96) // 2
    part = mask[top : top + 96, left : left + 96]
    slow = [part[row : row + 16, column : column + 16].mean() for row in range(0, 96, 16) for column in range(0, 96, 16)]
    assert patch_shares(mask[None], 48, 8)[0] == pytest.approx(slow, abs=0.04)


def test_a_patch_is_of_the_one_region_that_covers_half_of_it() -> None:
    """Of 2 x 2 patches of 8 pixels each: half and more, less, two by half each, and all of it by two."""
    one, two, three = (np.zeros((16, 16), bool) for _ in range(3))
    one[:8, :5] = True  # 40 of 64 pixels of patch 0, the rest is background
    two[:4, 8:14] = True  # 24 of 64 of patch 1
    one[8:, :4] = True
    two[8:, 4:8] = True  # patch 2 belongs to both
    one[8:, 8:] = three[8:, 8:] = True  # patch 3 as well
    things = (Thing("one", one, True), Thing("two", two, False), Thing("three", three, True))
    kind_N, has_RN = kinds_of(Annotated(things, (), "", ~(one | two | three)), 16, 8)
    assert kind_N.tolist() == [NAMED, BACKGROUND, NONE, NONE]
    assert has_RN.astype(int).tolist() == [[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]]
    kind_N, _ = kinds_of(Annotated((Thing("two", ~one, False),), (), "", one & False), 16, 8)
    assert kind_N.tolist() == [NONE, UNNAMED, UNNAMED, NONE], "60 % and 100 % of things of which nothing is known"
    kind_N, _ = kinds_of(Annotated((), (), "", ~one, background_named=True), 16, 8)
    assert kind_N.tolist() == [NONE, NAMED_BACKGROUND, NAMED_BACKGROUND, NONE]


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares"), draw_squares(12))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))


def test_patches_and_tokens_of_a_drawn_world(squares: Path, tokenizer: Tokenizer) -> None:
    data = Collection(squares / "data", 48)
    found = read_regions(squares / "test_regions.json", data, tokenizer, 8, 40)
    assert found.counts["annotated"] == 12 and found.counts["phrases"] == 24 and found.phrases == 2
    for square, picture in zip(draw_squares(12), found.pictures, strict=True):
        expected = np.array([BACKGROUND, NAMED, NAMED, UNNAMED, UNNAMED])[square.labels[::8, ::8]].reshape(-1)
        assert picture.kind_N.tolist() == expected.tolist()
        (ids,) = tokenizer.encode([square.caption], 40)
        for number, phrase in enumerate(picture.phrases):
            assert tokenizer.decode(ids[list(phrase.places)]) == f"{square.colours[number]} square"
            assert phrase.region_N.tolist() == (square.labels[::8, ::8].reshape(-1) == number + 1).tolist()
    assert found.digest == read_regions(squares / "test_regions.json", data, tokenizer, 8, 40).digest
    first = read_regions(squares / "test_regions.json", data, tokenizer, 8, 40, count=5)
    assert len(first.pictures) == 5 and first.digest != found.digest
    cut = read_regions(squares / "test_regions.json", data, tokenizer, 8, 6)
    large = read_regions(squares / "test_regions.json", data, tokenizer, 16, 40)
    assert len({found.digest, cut.digest, large.digest}) == 3, "of this model"
    assert found.annotations == cut.annotations == large.annotations != first.annotations
    assert (cut.counts["phrases"], cut.counts["phrases_cut"]) == (12, 12) and "12 more cut off" in cut.told()


def test_a_smaller_copy_of_the_pictures_has_the_same_regions(squares: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Annotated at three times the size that is stored."""
    shutil.copytree(squares / "regions", tmp_path / "regions")
    shutil.copy(squares / "test_regions.json", tmp_path)
    for path in (tmp_path / "regions").iterdir():
        Image.open(path).resize((144, 144), Image.Resampling.NEAREST).save(path)
    data = Collection(squares / "data", 48)
    found = [read_regions(folder / "test_regions.json", data, tokenizer, 8, 40) for folder in (squares, tmp_path)]
    assert found[0].digest == found[1].digest


def change(squares: Path, tmp_path: Path, **fields: object) -> Path:
    """The regions with fields of every record set anew."""
    shutil.copytree(squares / "regions", tmp_path / "regions")
    content = json.loads((squares / "test_regions.json").read_text())
    for record in content["pictures"].values():
        record |= fields
    (tmp_path / "test_regions.json").write_text(json.dumps(content))
    return tmp_path / "test_regions.json"


def test_captions_may_differ_in_spacing_and_case_only(squares: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, content = Collection(squares / "data", 48), json.loads((squares / "test_regions.json").read_text())
    for record in content["pictures"].values():
        second = record["caption"].index(" and")
        for entry in record["objects"]:
            entry["span"] = [at + 3 + (at > second) for at in entry["span"]] if entry["span"] else None
        record["caption"] = "\u201c  " + record["caption"].upper().replace(" AND", "  AND")
    shutil.copytree(squares / "regions", tmp_path / "regions")
    (tmp_path / "test_regions.json").write_text(json.dumps(content))
    other, own = (read_regions(folder / "test_regions.json", data, tokenizer, 8, 40) for folder in (tmp_path, squares))
    assert other.counts["annotated"] == 12
    for picture, expected in zip(other.pictures, own.pictures, strict=True):
        assert [set(p.places) & set(e.places) != set() for p, e in zip(picture.phrases, expected.phrases, strict=True)] == [
            True
        ] * 2


def test_pictures_that_do_not_match_are_counted_and_said(squares: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    some = draw_squares(12)[:5]
    path = write_regions(tmp_path / "test_regions.json", some)
    content = json.loads(path.read_text())
    content["pictures"][some[0].url]["caption"] = "something else"
    Image.fromarray(np.zeros((48, 70), np.uint8)).save(tmp_path / some[1].record["mask"])
    path.write_text(json.dumps(content))
    found = read_regions(path, Collection(squares / "data", 48), tokenizer, 8, 40)
    assert (
        found.counts["annotated"] == 3
        and [picture is not None for picture in found.pictures] == [False] * 2 + [True] * 3 + [False] * 7
    )
    assert found.told() == (
        "regions (drawn world): 3 of 12 pictures, 6 phrases; 7 are not annotated, 1 are annotated with other captions, "
        "1 were cropped or padded since they were annotated"
    )
    assert found.kinds(0).tolist() == [NONE] * 36


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"caption": "another"}, "12 pictures are among them, each with other captions than the data set's"),
        ({"mask": "regions/none.png"}, "the label picture cannot be read"),
        ({"objects": [{"label": 1}]}, "is not as expected"),
        ({"background": None}, "is not as expected"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    squares: Path, tokenizer: Tokenizer, tmp_path: Path, fields: dict, message: str
) -> None:
    path = change(squares, tmp_path, **fields)
    with pytest.raises(UserError) as error:
        read_regions(path, Collection(squares / "data", 48), tokenizer, 8, 40)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_regions_of_another_data_set_are_refused(squares: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = change(squares, tmp_path)
    path.write_text(path.read_text().replace("squares.example", "elsewhere.example"))
    with pytest.raises(UserError, match=r"none of the data set's 12 pictures is among them \(the first is http://squares"):
        read_regions(path, Collection(squares / "data", 48), tokenizer, 8, 40)
    for number, mask in enumerate((tmp_path / "regions").iterdir()):
        Image.fromarray(np.zeros((48, 60 + number), np.uint8)).save(mask)
    path.write_text(path.read_text().replace("elsewhere.example", "squares.example"))
    with pytest.raises(UserError, match="12 pictures are among them, but stored cropped or padded"):
        read_regions(path, Collection(squares / "data", 48), tokenizer, 8, 40)
