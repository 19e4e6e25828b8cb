"""One batch on the bare model, whole and in pieces: the gradients that every way of splitting it must give."""

from __future__ import annotations

import dataclasses

import torch

from sycoca_ds.config import LossConfig, MaskingConfig, ModelConfig
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs

BATCH = 12
LENGTHS = (12, 5, 8, 3, 4, 9, 12, 6, 7, 3, 10, 11)


CONTENT = MaskingConfig(words="content", left_out_ids=(1, 2, 5, 17, 30))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to score patches, and what trains the scores."""

    masking: MaskingConfig = CONTENT
    loss: LossConfig = LossConfig()
    pooling: str = "cls"

    def of(self, config: ModelConfig) -> ModelConfig:
        return dataclasses.replace(pooled(config, self.pooling), masking=self.masking)


def scored_by(similarity: str) -> MaskingConfig:
    return dataclasses.replace(CONTENT, similarity=similarity)


KINDS = {
    "paper": Kind(MaskingConfig()),
    "presets": Kind(pooling="mean"),
    "late": Kind(  # its group does not divide the batch
        scored_by("centred_over_pictures"), LossConfig(itc=0.7, late_interaction=0.4, late_interaction_group=5)
    ),
    "cross": Kind(scored_by("cross_attention")),
    "values": Kind(scored_by("value_path")),
    # with loss.mim 1 a pixel is right to 1e-7, and L1's slope there a matter of rounding
    "global": Kind(scored_by("global"), LossConfig(mim=0.9)),
    "centred": Kind(scored_by("centred_token_max")),
    "saliency": Kind(scored_by("saliency")),
}
"""Every score of a patch (`test_every_score_is_among_them`)."""


def pooled(config: ModelConfig, pooling: str) -> ModelConfig:
    """The same with its encoders pooled like this; attention's pooling is the image's alone."""
    image = dataclasses.replace(config.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    return dataclasses.replace(
        config, image=image, text=dataclasses.replace(config.text, pooling="mean" if pooling == "mean" else "cls")
    )


def model_of(family: str = "sycoca", pooling: str = "", kind: str = "paper") -> SyCoCa:
    """Args: pooling: default the kind's."""
    config = KINDS[kind].of(dataclasses.replace(SMALL_MODEL, family=family))
    return SyCoCa(pooled(config, pooling) if pooling else config, KINDS[kind].loss, seed=1).train()


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
