"""Gradients as DeepSpeed holds them, of two ranks with two micro-batches each under every ZeRO stage, against one batch on the bare
model. Weights after a step would not show a gradient that is k times too large: AdamW divides by its size."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.engine.logit_scale import bound_logit_scale
from sycoca_ds.engine.policy import read_policy
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.model import decoders
from tests.worlds.gradients import BATCH, LENGTHS, assert_same_gradients, cut, model_of, of_whole_batch
from tests.worlds.launching import run_on_ranks
from tests.worlds.small_model import SMALL_MODEL, random_inputs

MICRO_BATCHES = 2
STAGES = ("zero1", "zero2", "zero3", "zero3_offload", "zero3_released")
"""The last is ZeRO-3 that keeps no parameter whole between two uses: under the shipped thresholds models this small stay so."""
RELEASED = {
    name: 0
    for name in (
        "stage3_param_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size",
    )
}


def policy_of(stage: str) -> dict:
    policy = read_policy(f"ds_configs/{stage.removesuffix('_released')}.json")
    zero = policy["zero_optimization"] | (RELEASED if stage == "zero3_released" else {})
    sizes = {"train_micro_batch_size_per_gpu": BATCH // 4, "gradient_accumulation_steps": MICRO_BATCHES}
    return {**policy, **sizes, "zero_optimization": zero, "bf16": {"enabled": False}}


def on_a_rank(runtime: Runtime, folder: str) -> None:
    """What each rank runs, stage by stage: its half of the batch in two micro-batches; rank 0 saves every gradient.

    Then a step at a learning rate of 0 and the logit scale's bound, which is set below where the scale starts.
    """
    import deepspeed
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    torch.set_num_threads(1)
    decoders.LOGITS_AT_ONCE = 2 * SMALL_MODEL.text.vocab_size
    micro_batches = cut(cut(random_inputs(BATCH, LENGTHS), 2)[runtime.rank], MICRO_BATCHES)
    for stage in STAGES:
        model = model_of()
        model.set_activation_checkpointing(stage == "zero3_released")
        optimizer = (DeepSpeedCPUAdam if stage == "zero3_offload" else torch.optim.AdamW)(model.parameters(), lr=0.0)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=policy_of(stage))
        if stage == "zero3_released":
            whole_now = [p for p in model.parameters() if p.data.numel() == p.ds_numel]
            assert not whole_now, f"{len(whole_now)} parameters are still whole"
        for number, (micro, more) in enumerate(zip(micro_batches, shared_inputs(engine, micro_batches, 2), strict=True)):
            if number:
                engine.step()  # between micro-batches it only counts
            engine.backward(engine("train", **micro, **more)["loss"])
        gradients = {name: safe_get_full_grad(p).float() for name, p in model.named_parameters()}
        engine.step()
        before = safe_get_full_fp32_param(model.logit_scale).item()
        model.config = dataclasses.replace(model.config, max_logit_scale=5.0)
        bound_logit_scale(model)
        after = safe_get_full_fp32_param(model.logit_scale).item()
        assert before == pytest.approx(math.log(1 / 0.07)) and after == pytest.approx(math.log(5.0)), (stage, before, after)
        if runtime.leads:
            torch.save(gradients, Path(folder, f"{stage}.pt"))
        engine.destroy()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    run_on_ranks(folder, __name__, str(folder))
    return folder


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    return of_whole_batch()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_holds_the_gradient_of_one_batch(stage: str, gradients: Path, whole) -> None:
    found, model = torch.load(gradients / f"{stage}.pt", weights_only=True), model_of()
    for name, p in model.named_parameters():
        p.grad = found[name].view_as(p)
    assert_same_gradients(model, whole[1])
