"""In which type a step multiplies, by its operations; and that it never waits for the device, on a GPU where there is one."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig, with_vocabulary
from sycoca_ds.engine.policy import check_weights
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS
from tests.worlds.machines.fake_gpu import GPU
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs, small_model

aten = torch.ops.aten
PRODUCTS = {aten.mm.default: 0, aten.addmm.default: 1, aten.bmm.default: 0, aten.baddbmm.default: 1}
"""Which of its arguments is the first factor."""


class Products(TorchDispatchMode):
    """Counts multiplications of matrices by the type of their factors."""

    def __init__(self) -> None:
        super().__init__()
        self.by_type: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            left, right = args[PRODUCTS[func] : PRODUCTS[func] + 2]
            assert left.dtype == right.dtype
            self.by_type[left.dtype] += math.prod(left.shape) * right.shape[-1]
        return func(*args, **(kwargs or {}))

    def share(self, dtype: torch.dtype) -> float:
        return self.by_type[dtype] / self.by_type.total()


def step(config: ModelConfig, dtype: torch.dtype, batch: int = 4) -> None:
    """Forward and backward of a model without numbers."""
    side, length = config.image.image_size, config.text.context_length
    with GPU:
        model = SyCoCa(config).to(dtype)
        images = torch.zeros(batch, 3, side, side, dtype=torch.uint8)
        text, places = torch.zeros(batch, length, dtype=torch.int64), torch.zeros(20 * batch, dtype=torch.int64)
        keys = torch.zeros(batch, dtype=torch.int64)
        model("train", image_BCHW=images, text_BL=text, label_at_M=places, key_B=keys)["loss"].backward()


@pytest.mark.parametrize("preset", ["base", "930m"])
def test_a_step_in_bf16_multiplies_in_bf16(preset: str) -> None:
    """All but the contrast and the scores for masks, which are float32 on purpose: of two layers a part, 3 %."""
    model = with_vocabulary(PRESETS[preset].model, 4096, left_out_ids=(1, 2))
    parts = ("image", "text", "text_decoder", "image_decoder")
    model = dataclasses.replace(model, **{part: dataclasses.replace(getattr(model, part), layers=2) for part in parts})
    for dtype, least in ((torch.bfloat16, 0.96), (torch.float32, 1.0)):
        with Products() as products:
            step(model, dtype)
        assert products.share(dtype) >= least, products.by_type
        assert set(products.by_type) <= {dtype, torch.float32}


def test_weights_of_another_type_are_told_in_one_line() -> None:
    model = small_model()
    check_weights(model, {"bf16": {"enabled": False}})
    check_weights(model.to(torch.bfloat16), {"bf16": {"enabled": True}})
    model.text_encoder.blocks[1].mlp.float()
    said = r"run.precision = bf16, and 4 of \d+ weights .*text_encoder.blocks.1.mlp.fc.weight: torch.float32"
    with pytest.raises(UserError, match=said) as told:
        check_weights(model, {"bf16": {"enabled": True}})
    assert "\n" not in str(told.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; without one test_devices.py sees the same")
@pytest.mark.parametrize("recompute", [0, 1])
def test_a_step_never_waits_for_a_real_gpu(recompute: int) -> None:
    """torch's own check: whatever makes the host wait for the device is an error."""
    model = SyCoCa(SMALL_MODEL, seed=0).to("cuda", torch.bfloat16).train()
    model.set_activation_checkpointing(recompute)
    inputs = {name: value.cuda() for name, value in random_inputs().items()}
    inputs["label_at_M"] = torch.arange(8, device="cuda")
    model("train", **inputs)["loss"].backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model("train", **inputs)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
