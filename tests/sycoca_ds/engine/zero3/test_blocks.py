"""ZeRO-3 by blocks: which modules have hooks, what a step asks for, and every way into a block."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sycoca_ds.engine.policy import build_engine, build_optimizer, read_policy
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.model.layers.blocks import Block
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import TINY
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs
from tests.worlds.processes.launching import run_on_ranks

NOTHING_WHOLE = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}
SIMILARITIES = ("token_max", "value_path", "cross_attention", "saliency")
"""Two of them ask a block for something other than its outputs."""


def answers(model: Any) -> dict[str, Any]:
    """What `model`, bare or a DeepSpeed engine, says by every way into its blocks."""
    inputs, found = random_inputs(seed=3), {}
    with torch.no_grad():
        for similarity in SIMILARITIES:
            text_CBL = inputs["text_BL"][None]
            score = model("masking_scores", image_BCHW=inputs["image_BCHW"], text_CBL=text_CBL, similarity=similarity)
            found[similarity] = score.tolist()
        found["generate"] = model("generate", image_BCHW=inputs["image_BCHW"], steps=5).tolist()
    return found


def inside_of_blocks(model: nn.Module) -> set[nn.Module]:
    return {inner for block in model.modules() if isinstance(block, Block) for inner in block.modules() if inner is not block}


def on_a_rank(runtime: Runtime, folder: str) -> None:
    torch.set_num_threads(1)
    policy = read_policy("ds_configs/zero3.json")
    policy["zero_optimization"] |= NOTHING_WHOLE
    policy |= {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, "bf16": {"enabled": False}}
    model = SyCoCa(SMALL_MODEL, seed=0).train()
    expected, standing_still = answers(model), dataclasses.replace(TINY.optim, lr=0.0)
    engine = build_engine(model, build_optimizer(model, standing_still, offload=False, stage=3), policy)
    inner = inside_of_blocks(model)
    hooked = {module for module in model.modules() if "pre_bwd_fn" in vars(module)}
    found = {"hooked in blocks": len(hooked & inner), "without hooks": len(set(model.modules()) - hooked - inner)}

    asked, coordinator = Counter(), engine.optimizer.parameter_offload.get_param_coordinator()
    fetch = coordinator.fetch_sub_module

    def counted(module: nn.Module, forward: bool) -> None:
        asked[type(module).__name__] += 1
        fetch(module, forward)

    coordinator.fetch_sub_module = counted
    for _ in range(3):  # noted, learned, used
        asked.clear()
        engine.backward(engine("train", **random_inputs(seed=runtime.rank))["loss"])
        engine.step()
    found["asked"] = dict(asked)
    said = answers(engine)
    found["wrong"] = [name for name, value in expected.items() if value != said[name]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_blocks = {id(p) for module in model.modules() if isinstance(module, Block) for p in module.parameters()}
    others = [module for module in model.modules() if not isinstance(module, Block)]
    found["registered elsewhere"] = sorted({names[key] for module in others for key in module._external_params if key in of_blocks})
    found["still whole"] = [name for name, p in model.named_parameters() if p.data.numel() == p.ds_numel]
    if runtime.leads:
        Path(folder, "found.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_blocks_are_gathered_as_one(tmp_path: Path) -> None:
    """Two ranks, nothing whole between two uses. A way into a block past its `forward` would find its weights cut: DeepSpeed then
    gathers them on the spot and registers them with whatever module runs, which asks for them at each of its calls from then on."""
    run_on_ranks(tmp_path, __name__, str(tmp_path))
    found = json.loads((tmp_path / "found.json").read_text())
    asked = found.pop("asked")
    # both ways: two layers each, the image encoder twice, a decoder's layer a pair
    assert asked["SelfBlock"] == 2 * (2 * 2 + 2 + 2 + 2) and asked["CrossBlock"] == 2 * (2 + 2)
    assert "SelfAttention" not in asked and "Mlp" not in asked
    assert found == {"hooked in blocks": 0, "without hooks": 0, "wrong": [], "registered elsewhere": [], "still whole": []}
