"""Grad-CAM against finite differences of the model itself, and on a layer whose map is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from sycoca_ds.config import MaskingConfig
from sycoca_ds.model.grad_cam import class_activation
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs, small_model


def test_a_map_worked_out_by_hand() -> None:
    """Two patches, two channels: weights are means over patches, (1, -1); sums 3 - 1 and 0 - 4, the latter cut off."""
    activation = torch.tensor([[[3.0, 1.0], [0.0, 4.0]]])
    slope = torch.tensor([[[2.0, 0.0], [0.0, -2.0]]])
    assert class_activation(activation, slope).tolist() == [[2.0, 0.0]]


def target_of(model, inputs: dict, words_BL: torch.Tensor | None, shift_BND: torch.Tensor) -> torch.Tensor:
    """(B,) float64: what Grad-CAM explains, with the patch embedding's outputs shifted."""
    hook = model.image_encoder.patch_embed.register_forward_hook(lambda module, given, output: output + shift_BND)
    try:
        with torch.no_grad():
            encoder = model.image_encoder
            image_BD, seen = encoder.read(encoder(model._patches(inputs["image_BCHW"])))
            if words_BL is None:  # `image_features` is the same in float32, too coarse for differences
                image_BE = F.normalize(encoder.proj(image_BD), dim=1)
                return (image_BE * model("text_features", text_BL=inputs["text_BL"])).sum(1)
            logits = model.text_decoder(model.text_encoder(inputs["text_BL"])[1], seen).log_softmax(2)
            said = logits[:, :-1].gather(2, inputs["text_BL"][:, 1:, None])[:, :, 0]
            return (said * words_BL[:, 1:]).sum(1)
    finally:
        hook.remove()


@pytest.mark.parametrize("explained", ["similarity", "likelihood"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_maps_are_those_of_finite_differences(explained: str, pooling: str) -> None:
    """Channel weights one at a time: a shift of a channel at all patches changes the target by N times its weight."""
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling)
    text = dataclasses.replace(SMALL_MODEL.text, pooling=pooling)
    config = dataclasses.replace(SMALL_MODEL, image=image, text=text, family="sycoca", masking=MaskingConfig())
    model, inputs = SyCoCa(config, seed=1).eval().double(), random_inputs()
    inputs["image_BCHW"] = inputs["image_BCHW"].double()
    words_BL = None
    if explained == "likelihood":
        words_BL = torch.zeros(4, 12, dtype=torch.bool)
        words_BL[0, [3, 7]] = words_BL[1, 1] = words_BL[2, [2, 3]] = words_BL[3, 1] = True
    found_BN = model("grad_cam", image_BCHW=inputs["image_BCHW"], text_BL=inputs["text_BL"], words_BL=words_BL)
    with torch.no_grad():
        activation_BND = model.image_encoder.patch_embed(model._patches(inputs["image_BCHW"]))
    step, expected = 1e-4, torch.zeros_like(found_BN)
    for channel in range(activation_BND.shape[2]):
        shift = torch.zeros_like(activation_BND)
        shift[:, :, channel] = step
        slope_B = (target_of(model, inputs, words_BL, shift) - target_of(model, inputs, words_BL, -shift)).double() / (2 * step)
        expected += slope_B[:, None] / activation_BND.shape[1] * activation_BND[:, :, channel]
    assert (expected.relu() > 0).any() and (expected < 0).any()
    torch.testing.assert_close(found_BN.double(), expected.relu().double(), atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_a_picture_s_map_does_not_hang_on_the_others_and_weights_get_no_gradient() -> None:
    model, inputs = small_model(), random_inputs()
    together = model("grad_cam", image_BCHW=inputs["image_BCHW"], text_BL=inputs["text_BL"])
    alone = model("grad_cam", image_BCHW=inputs["image_BCHW"][2:3], text_BL=inputs["text_BL"][2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-7)
    assert not together.requires_grad and all(parameter.grad is None for parameter in model.parameters())
    assert not model.image_encoder.patch_embed._forward_hooks


def test_what_it_cannot_do_is_told() -> None:
    inputs = random_inputs()
    given = {"image_BCHW": inputs["image_BCHW"], "text_BL": inputs["text_BL"]}
    with torch.inference_mode(), pytest.raises(ValueError, match="outside inference mode"):
        small_model()("grad_cam", **given)
    with pytest.raises(ValueError, match="family clip has no text decoder"):
        small_model("clip", mim="none")("grad_cam", **given, words_BL=inputs["text_BL"] > 2)
