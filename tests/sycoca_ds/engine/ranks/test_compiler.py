"""torch's compiler stays out of a training that compiles nothing, and is what it was for those that do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import REPOSITORY

ASKS = """
import sys, json, torch
from torch.utils.checkpoint import checkpoint
from sycoca_ds.engine.ranks.environment import prepare_deepspeed

found, there = {}, lambda: "torch._dynamo" in sys.modules
prepare_deepspeed()

def train(weight, steps=2):
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for _ in range(steps):
        loss = checkpoint(lambda x: (x * weight).sin().sum(), torch.ones(3, requires_grad=True), use_reentrant=False)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    return weight.tolist()

@torch.compiler.disable
def hook(x):
    found["compiled"] = torch.compiler.is_compiling()
    return x + 1

weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
hook(weights[0])
found["late"] = train(weights[0])
found["without"] = not there()
found["setting"] = torch._dynamo.config.cache_size_limit
found["asked for"] = there()
found["with"] = train(weights[1])
compiled = torch.compile(lambda x: hook(2 * x) + 1, backend="eager")
found["result"] = compiled(torch.ones(2)).tolist()
print("found", json.dumps(found))
"""


def found_by(script: str) -> dict:
    """What a process of its own says last: those of other tests have imported everything."""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("found ", 1)[1])


@pytest.mark.slow
def test_nothing_of_a_step_asks_for_the_compiler_and_who_asks_has_it() -> None:
    found = found_by(ASKS)
    assert found["without"] and found["asked for"] and found["setting"] > 0
    assert found["late"] == found["with"] and found["late"] != [1.0] * 3
    assert found["result"] == [4.0, 4.0] and found["compiled"] is False, "a marked function is not compiled"


ENGINE = """
import sys, json
from sycoca_ds.engine.ranks.environment import prepare_deepspeed
prepare_deepspeed()
from sycoca_ds.engine.policy import build_engine, build_optimizer, read_policy
from sycoca_ds.engine.ranks.runtime import start_runtime
from sycoca_ds.presets import TINY
from tests.worlds.models.small_model import random_inputs, small_model

runtime = start_runtime()
for stage in STAGES:
    model = small_model().train()
    model.set_activation_checkpointing(1)
    sizes = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    policy = {**read_policy(f"ds_configs/zero{stage}.json"), **sizes, "bf16": {"enabled": stage > 0}}
    engine = build_engine(model, build_optimizer(model, TINY.optim, False, stage), policy)
    for _ in range(2):
        engine.backward(engine("train", **random_inputs())["loss"])
        engine.step()
    engine.destroy()
runtime.leave()
print("found", json.dumps([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stages", ["(3,)", pytest.param("(0, 1, 2)", marks=pytest.mark.full)])
def test_an_engine_takes_its_first_steps_without_it(stages: str, tmp_path: Path) -> None:
    assert found_by(ENGINE.replace("STAGES", stages)) == []
