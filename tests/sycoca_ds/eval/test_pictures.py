"""Pictures against loops over pixels."""

import numpy as np
import pytest
import torch

from sycoca_ds.engine.monitoring.pictures import card
from sycoca_ds.eval import pictures
from sycoca_ds.model.pixels import normalise


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)


HIDDEN = np.array([0, 1, 0, 0, 0, 1, 1, 0, 0], bool)


def test_patches_land_where_they_belong():
    """Every number of every patch, by loop: patches row by row, (row, column, channel) within."""
    patch = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (9, 48)))
    image = pictures.patches_to_picture(
        normalise(patch.reshape(9, 16, 3).permute(0, 2, 1)[..., None])[..., 0].permute(0, 2, 1).reshape(9, 48)
    )
    assert image.shape == (12, 12, 3)
    for n in range(9):
        for y in range(4):
            for x in range(4):
                for c in range(3):
                    assert image[n // 3 * 4 + y, n % 3 * 4 + x, c] == patch[n, (y * 4 + x) * 3 + c]


def test_pictures_survive_the_model_s_patchify(picture):
    from sycoca_ds.model.image_encoder import patchify

    image = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None])
    patches = patchify(image, 4)
    assert np.array_equal(pictures.patches_to_picture(patches[0]), picture)


def test_values_off_the_screen_are_clipped():
    out = pictures.to_picture(torch.stack([torch.full((2, 2), v) for v in (99.0, -99.0, 0.0)]))
    assert out.dtype == np.uint8 and out[0, 0, 0] == 255 and out[0, 0, 1] == 0 and 0 < out[0, 0, 2] < 255


def test_hide_paste_and_overlay(picture):
    rebuilt = 255 - picture
    hidden, pasted = pictures.hide(picture, HIDDEN, (1, 2, 3)), pictures.paste(picture, rebuilt, HIDDEN)
    tinted = pictures.mask_overlay(picture, HIDDEN, (200, 100, 0), 0.5)
    for y in range(12):
        for x in range(12):
            if HIDDEN[y // 4 * 3 + x // 4]:
                assert hidden[y, x].tolist() == [1, 2, 3]
                assert pasted[y, x].tolist() == rebuilt[y, x].tolist()
                assert tinted[y, x].tolist() == np.round(picture[y, x] * 0.5 + np.array([100, 50, 0])).tolist()
            else:
                assert hidden[y, x].tolist() == pasted[y, x].tolist() == tinted[y, x].tolist() == picture[y, x].tolist()


def test_heat_map_orders_scores():
    out = pictures.heat_map(np.array([0.1, 0.4, 0.2, 0.3]), 8).astype(int)
    assert out.shape == (8, 8, 3)
    light = [out[y, x].sum() for y, x in ((0, 0), (4, 0), (4, 4), (0, 4))]  # scores .1 .2 .3 .4
    assert light == sorted(light) and len(set(light)) == 4
    assert out[0, 0].tolist() == [0, 0, 4] and out[0, 7].tolist() == [252, 255, 164]
    assert len(np.unique(pictures.heat_map(np.ones(4), 8).reshape(-1, 3), axis=0)) == 1


def test_grid_places_and_sizes(picture):
    out = pictures.grid([picture, picture[:6], picture], 2, ["one", "two\u2028\u732b", "a label that is far too long"], gap=4)
    assert out.shape == (4 + 2 * (12 + 14 + 4), 4 + 2 * (12 + 4), 3)
    assert np.array_equal(out[4:16, 4:16], picture)
    assert np.array_equal(out[4:10, 20:32], picture[:6])
    assert np.array_equal(out[34:46, 4:16], picture)
    assert (out[10:16, 20:32] == 255).all()
    assert out[46:, 4:16].min() < 255


def test_labels_of_several_lines_in_cells_that_are_wide_enough(picture):
    """Names differ at both ends, and in other alphabets than ours."""
    out = pictures.grid([picture, picture], 2, ["0.1\nпляж летом.jpg", "0.2"], text_size=10, narrowest=90)
    assert out.shape == (6 + 12 + 2 * 14 + 6, 6 + 2 * (90 + 6), 3)
    assert np.array_equal(out[6:18, 102:114], picture) and out[33:, :96].min() < 255 and (out[33:, 96:] == 255).all()
    font, name = pictures.font_of(12), "IMG_20240101_101010_beach_with_kids.jpg"
    short = pictures.shortened(name, font, 150)
    assert short.startswith("IMG_2024") and "..." in short and short.endswith("kids.jpg") and 130 < font.getlength(short) <= 150
    assert pictures.shortened("a.jpg", font, 150) == "a.jpg"
    letters = [pictures.font_of(20).getmask(letter).getbbox() for letter in "пЖя"]
    assert len(set(letters)) == 3, "not one box for all"


def test_any_text_can_be_drawn(picture):
    """A model that has learned little says what no layout of letters can hold: a training ended of it."""
    odd = "".join(map(chr, [*range(32), 0x7F, 0x85, 0x300, 0x5D0, 0x627, 0x200F, 0x202E, 0x2028, 0xD800, 0xE000, 0xFFFD, 0x1F600]))
    for text in (odd, odd[::-1], "\0", "a" + odd):
        assert (pictures.grid([picture], 1, [text], narrowest=400) < 255).any()
        assert card([(text, picture)], [f"model: {text}"]).size


def test_enlarge_repeats_pixels(picture):
    out = pictures.enlarge(picture, 30)
    assert out.shape == (36, 36, 3) and np.array_equal(out[::3, 1::3], picture)


def test_errors():
    for call in (
        lambda: pictures.patch_side(10),
        lambda: pictures.grid_side(8),
        lambda: pictures.per_pixel(np.ones(9), 10),
        lambda: pictures.grid([], 2),
        lambda: pictures.grid([np.zeros((2, 2, 3), np.uint8)], 1, ["a", "b"]),
    ):
        with pytest.raises(ValueError):
            call()
