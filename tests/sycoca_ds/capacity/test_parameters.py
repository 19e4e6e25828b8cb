"""Shapes of weights by arithmetic against the real model on the meta device."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from sycoca_ds.capacity.parameters import all_shapes, parts
from sycoca_ds.config import MaskingConfig, ModelConfig, with_vocabulary
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS
from tests.worlds.models.small_model import SMALL_MODEL


def real(model: ModelConfig) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the model's parameters by part, in the order of `named_parameters`."""
    with torch.device("meta"):
        found: dict[str, list[tuple[int, ...]]] = {}
        for name, p in SyCoCa(model, seed=None).named_parameters():
            found.setdefault(name.split(".")[0].replace("_", " "), []).append(tuple(p.shape))
    return found


def assert_same(model: ModelConfig) -> None:
    expected, found = real(model), {name: part.shapes() for name, part in parts(model).items()}
    assert set(found) == set(expected)
    for name, shapes in expected.items():
        assert Counter(found[name]) == Counter(shapes), name
    assert Counter(all_shapes(model)) == Counter(shape for shapes in expected.values() for shape in shapes)


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_of_every_preset(preset: str) -> None:
    assert_same(with_vocabulary(PRESETS[preset].model, 49152))


@pytest.mark.parametrize("family", ["clip", "coca", "sycoca"])
@pytest.mark.parametrize("pooling", ["cls", "attention"])
@pytest.mark.parametrize("mim", ["text_guided", "plain", "none"])
def test_shapes_of_every_family(family: str, pooling: str, mim: str) -> None:
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    assert_same(dataclasses.replace(SMALL_MODEL, family=family, image=image, masking=MaskingConfig(mim=mim)))


def test_a_block_s_weights_are_its_own() -> None:
    """Pieces of the forward pass count weights block by block; a decoder's layer is a block of each kind."""
    model = with_vocabulary(PRESETS["930m"].model, 49152)
    found = parts(model)
    assert len(found["image encoder"].blocks) == 24 and len(found["text decoder"].blocks) == 24
    assert found["text decoder"].blocks[0] != found["text decoder"].blocks[1] == found["text decoder"].blocks[3]
