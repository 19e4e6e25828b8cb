"""Where ZeRO's flat groups put the weights: on bounds that fast matrix products need."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch

from sycoca_ds.config import with_vocabulary
from sycoca_ds.engine.policy import build_optimizer
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS

BOUND = 64
"""Numbers: 128 bytes in bf16. From 16 bytes on the products are fast (measured on an H100), 128 is what memory is read by."""


def off_the_bounds(preset: str, stage: int) -> list[str]:
    """Weights that do not begin on a bound, those with nothing but odd sizes from there on left out."""
    with torch.device("meta"):
        model = SyCoCa(with_vocabulary(PRESETS[preset].model, 49152))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = []
    for group in build_optimizer(model, PRESETS[preset].optim, offload=False, stage=stage).param_groups:
        sizes = [parameter.numel() for parameter in group["params"]]
        begins = [0, *accumulate(sizes)][:-1]
        last = max((place for place, size in enumerate(sizes) if size % BOUND == 0), default=-1)
        found += [
            names[parameter]
            for place, (parameter, begin) in enumerate(zip(group["params"], begins, strict=True))
            if begin % BOUND and place <= last
        ]
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_begin_on_bounds_under_zero(preset: str) -> None:
    assert off_the_bounds(preset, stage=1) == []
    assert len(off_the_bounds(preset, stage=0)) > 50  # in the model's order all biases and norms would not


def test_every_weight_is_in_one_group_once() -> None:
    with torch.device("meta"):
        model = SyCoCa(with_vocabulary(PRESETS["tiny"].model, 512))
    for stage in (0, 1):
        decayed, others = (group["params"] for group in build_optimizer(model, PRESETS["tiny"].optim, False, stage).param_groups)
        assert {*map(id, decayed), *map(id, others)} == set(map(id, model.parameters()))
        assert len(decayed) + len(others) == len(list(model.parameters()))
        assert all(parameter.ndim >= 2 for parameter in decayed) and all(parameter.ndim < 2 for parameter in others)
