"""One batch on the bare model, whole and in pieces: the gradients that every way of splitting it must give."""

from __future__ import annotations

import dataclasses

import torch

from sycoca_ds.config import LossConfig, MaskingConfig
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs

BATCH = 12
LENGTHS = (12, 5, 8, 3, 4, 9, 12, 6, 7, 3, 10, 11)


CONTENT = MaskingConfig(words="content", left_out_ids=(1, 2, 5, 17, 30))
KINDS: dict[str, tuple[MaskingConfig, LossConfig]] = {
    "paper": (MaskingConfig(), LossConfig()),
    "late": (
        dataclasses.replace(CONTENT, similarity="centred_over_pictures"),
        LossConfig(itc=0.7, late_interaction=0.4, late_interaction_group=5),  # which does not divide the batch
    ),
    "cross": (dataclasses.replace(CONTENT, similarity="cross_attention"), LossConfig()),
    "values": (dataclasses.replace(CONTENT, similarity="value_path"), LossConfig()),
}
"""Ways to score patches, and what trains the scores."""


def model_of(family: str = "sycoca", pooling: str = "cls", kind: str = "paper") -> SyCoCa:
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    text = dataclasses.replace(SMALL_MODEL.text, pooling="mean" if pooling == "mean" else "cls")
    masking, loss = KINDS[kind]
    return SyCoCa(dataclasses.replace(SMALL_MODEL, family=family, image=image, text=text, masking=masking), loss, seed=1).train()


def backward_in_pieces(model: SyCoCa, micro_batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """What the loop and DeepSpeed's engine do with the micro-batches of one step, on the bare model: the reports."""
    shared, reports = shared_inputs(model, micro_batches, model.config.text.eot_id), []
    for micro, more in zip(micro_batches, shared, strict=True):
        reports.append(model("train", **micro, **more))
        (reports[-1]["loss"] / len(micro_batches)).backward()
    return reports


def cut(inputs: dict[str, torch.Tensor], pieces: int) -> list[dict[str, torch.Tensor]]:
    return [{name: value.chunk(pieces)[n] for name, value in inputs.items()} for n in range(pieces)]


def assert_same_gradients(model: SyCoCa, expected: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of the largest entry of each parameter's gradient, the logit scale's among them."""
    for name, p in model.named_parameters():
        largest = expected[name].abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(
            p.grad, expected[name], rtol=0, atol=1e-5 * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


def of_whole_batch(kind: str = "paper") -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """(losses, gradients) of the whole batch at once."""
    model = model_of(kind=kind)
    report = model("train", **random_inputs(BATCH, LENGTHS))
    report["loss"].backward()
    return {name: value.item() for name, value in report.items()}, {name: p.grad for name, p in model.named_parameters()}
