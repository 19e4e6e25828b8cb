"""The gradient's norm by part, of two ranks with two micro-batches each under every ZeRO stage, against one batch on the bare model
in one process, and against the norm that DeepSpeed clips by."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.engine.monitoring.curves import PARTS as ALL_PARTS
from sycoca_ds.engine.monitoring.gradients import GradientNorms
from sycoca_ds.engine.policy import build_engine, read_policy
from sycoca_ds.engine.ranks.runtime import Runtime
from tests.worlds.models.gradients import BATCH, LENGTHS, cut, model_of, of_whole_batch
from tests.worlds.models.small_model import random_inputs
from tests.worlds.processes.launching import run_on_ranks
from tests.worlds.processes.today import wanting

PARTS = tuple(part for part in ALL_PARTS if part != "fusion")
"""Of a model that pretrains."""

MICRO_BATCHES = 2
KINDS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload", "zero1_bf16", "zero2_bf16", "zero3_bf16")
"""Shipped policies; `zero1_bf16` is where DeepSpeed takes another optimizer, that sums whole gradients on every rank."""
BY_DAY = ("zero0", "zero1_bf16", "zero2", "zero3")


def on_a_rank(runtime: Runtime, folder: str, *kinds: str) -> None:
    """Each kind: norms of this rank's half of the batch in two micro-batches; rank 0 writes them down beside DeepSpeed's own."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    torch.set_num_threads(1)
    micro_batches = cut(cut(random_inputs(BATCH, LENGTHS), 2)[runtime.rank], MICRO_BATCHES)
    found = {}
    for kind in kinds:
        model, stage = model_of(), kind.removesuffix("_bf16")
        optimizer = (DeepSpeedCPUAdam if "offload" in kind else torch.optim.AdamW)(model.parameters(), lr=0.0)
        sizes = {"train_micro_batch_size_per_gpu": BATCH // 4, "gradient_accumulation_steps": MICRO_BATCHES}
        policy = {**read_policy(f"ds_configs/{stage}.json"), **sizes, "gradient_clipping": 1e-3, "bf16": {"enabled": kind != stage}}
        engine = build_engine(model, optimizer, policy)
        norms = GradientNorms(runtime)
        assert norms.read() == {}, "nothing was measured yet"
        for number, (micro, more) in enumerate(zip(micro_batches, shared_inputs(engine, micro_batches, 2), strict=True)):
            if number:
                engine.step()
            engine.backward(engine("train", **micro, **more)["loss"])
        norms.measure(engine)
        engine.step()
        own = engine.get_global_grad_norm()
        found[kind] = {**norms.read(), "deepspeed": None if own is None else float(own)}
        assert norms.read() == {}, "a norm is told once"
        everywhere = runtime.gather(found[kind])
        assert everywhere[0] == everywhere[1], "all ranks have the same numbers"
        engine.destroy()
    if runtime.leads:
        Path(folder, "norms.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("norms")
    run_on_ranks(folder, __name__, str(folder), *(item.callspec.params["kind"] for item in wanting(request, "norms")))
    return json.loads((folder / "norms.json").read_text())


@pytest.fixture(scope="module")
def whole() -> dict[str, float]:
    """Each part's norm on the bare model."""
    squares = dict.fromkeys(PARTS, 0.0)
    for name, gradient in of_whole_batch()[1].items():
        squares[name.split(".")[0]] += gradient.double().square().sum().item()
    return {part: math.sqrt(value) for part, value in squares.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in BY_DAY else pytest.mark.full) for kind in KINDS])
def test_parts_are_those_of_one_batch_and_their_squares_add_up(kind: str, norms, whole: dict[str, float]) -> None:
    found, tolerance = norms[kind], 0.05 if "bf16" in kind else 1e-5
    assert set(found) == {"grad_norm", "deepspeed", *(f"grad_norm/{part}" for part in PARTS)}
    for part, norm in whole.items():
        assert norm > 0 and found[f"grad_norm/{part}"] == pytest.approx(norm, rel=tolerance), part
    total = math.sqrt(sum(found[f"grad_norm/{part}"] ** 2 for part in PARTS))
    assert found["grad_norm"] == pytest.approx(total, rel=1e-6)
    if kind == "zero0":
        assert found["deepspeed"] is None, "without ZeRO DeepSpeed never learns the norm"
    else:
        assert found["grad_norm"] == pytest.approx(found["deepspeed"], rel=1e-5)


def test_a_model_without_decoders_has_two_parts_and_the_scale() -> None:
    """On the bare model, as a run of one rank without ZeRO holds it."""

    class Engine:
        module = model_of("clip")

        @staticmethod
        def zero_optimization_stage() -> int:
            return 0

    Engine.module("train", **random_inputs(BATCH, LENGTHS))["loss"].backward()
    norms = GradientNorms(Runtime(0, 0, 1, torch.device("cpu"), 1))
    norms.measure(Engine)
    found = norms.read()
    assert list(found) == ["grad_norm", "grad_norm/logit_scale", "grad_norm/image_encoder", "grad_norm/text_encoder"]
    expected = torch.nn.utils.get_total_norm([p.grad for p in Engine.module.parameters()])
    assert found["grad_norm"] == pytest.approx(expected.item(), rel=1e-6)
