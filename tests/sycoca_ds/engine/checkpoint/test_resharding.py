"""Runs that go on with another number of ranks: real processes, every ZeRO stage, bit by bit what was saved."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine import policy
from sycoca_ds.engine.checkpoint import resharding, saving
from sycoca_ds.engine.checkpoint.saving import Saver
from sycoca_ds.engine.checkpoint.seal import read_state
from sycoca_ds.engine.ema import Ema
from tests.worlds.processes.launching import run_on_ranks
from tests.worlds.trainings.training import SMALL, assert_same_run, train_here

if TYPE_CHECKING:
    from sycoca_ds.engine.ranks.runtime import Runtime

pytestmark = pytest.mark.timeout(1800)  # the first test waits for all the runs
OPTIONS = ["--optim.global-batch-size", "12", "--data.lanes", "6", "--optim.weight-decay", "1.0", "--optim.ema-decay", "0.9"]
CASES = {  # each with the numbers of ranks that go on with what two ranks saved; 0: without a launcher
    ("zero0", "fp32"): [0],  # every rank holds everything
    ("zero1", "bf16"): [3],
    ("zero2", "fp32"): [3],
    ("zero3", "fp32"): [0, 3],
    ("zero3", "bf16"): [3],
    ("zero3_offload", "fp32"): [3],
}
DAILY = (("zero3", "fp32", 3),)
GRID = [
    pytest.param(*cell, marks=() if cell in DAILY else pytest.mark.full)
    for cell in ((*case, ranks) for case, counts in CASES.items() for ranks in counts)
]


def write_down(engine, ema: Ema, file: Path) -> None:
    """Every tensor and number of a step, put together from all ranks."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = {}
    # DeepSpeed links the getters of a second group before it has a state
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for parameter_name, parameter in engine.module.named_parameters():
        state[parameter_name] = safe_get_full_fp32_param(parameter).cpu()
        for key in ("exp_avg", "exp_avg_sq"):
            state[parameter_name, key] = safe_get_full_optimizer_state(parameter, key).cpu()
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            state[parameter_name, "used"] = parameter.detach().float().clone()
        start, values = ema.pieces.get(parameter_name, (0, torch.empty(0)))
        average = torch.zeros_like(state[parameter_name]).flatten()
        average[start : start + values.numel()] = values
        torch.distributed.all_reduce(average)  # each number is one rank's
        state[parameter_name, "ema"] = average
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    state["steps"] = sorted({int(own["step"]) for own in inner.state.values()})
    shared = [own["step"].data_ptr() for own in inner.state.values() if torch.is_tensor(own["step"])]
    state["own step"] = len(set(shared)) == len(shared)
    beside = [own["step"].device == p.device for p, own in inner.state.items() if torch.is_tensor(own["step"])]
    state["beside its weights"] = all(beside)
    state["decay"] = [group["weight_decay"] for group in engine.optimizer.param_groups]
    if engine.global_rank == 0:
        torch.save(state, file)


def on_a_rank(runtime: Runtime, folder: str, data: str, ranks: str, *cases: str) -> None:
    """The runs of so many ranks, in turn: state is written down at the first save, or where a run goes on."""
    plain_save, plain_restore = Saver.save, Ema.restore
    if ranks == "earlier":  # as a version saved that laid the weights in the model's order
        policy.FLAT_MULTIPLE, saving.FLAT_ORDER = 1, 1
    for case in cases:
        stage, precision = case.split()
        out = Path(folder, case, ranks)

        def save(self, *more, out=out, stage=stage, **named):
            if self.session.position.step == 2 and stage != "zero0":
                write_down(self.session.engine, self.session.ema, out.with_suffix(".pt"))
            return plain_save(self, *more, **named)

        def restore(self, *more, out=out, stage=stage):  # the last thing that is restored
            plain_restore(self, *more)
            if stage != "zero0":
                write_down(self._engine, self, out.with_suffix(".pt"))

        Saver.save, Ema.restore = save, restore
        options = [*SMALL, *OPTIONS, "--run.ds-config", f"ds_configs/{stage}.json", "--run.precision", precision]
        train_here(runtime, [*options, "--data.train", data, "--run.out", str(out)])


@pytest.fixture(scope="module")
def runs(data_set: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """For each case that is tried a folder with the run "2", which went through, and "0" or "3", which went on with a copy of it as
    it was at its first checkpoint, step 2 of 4."""
    folder, name = tmp_path_factory.mktemp("runs"), test_what_two_ranks_saved_other_numbers_of_ranks_load.__name__
    tried = [item.callspec.params for item in request.session.items if getattr(item, "originalname", "") == name]
    by_ranks = {ranks: [f"{p['stage']} {p['precision']}" for p in tried if p["ranks"] == ranks] for ranks in (0, 3)}
    run_on_ranks(folder, __name__, str(folder), str(data_set), "2", *dict.fromkeys(sum(by_ranks.values(), [])), ranks=2)
    for ranks, cases in by_ranks.items():
        for case in cases:
            shutil.copytree(folder / case / "2", folder / case / str(ranks))
            shutil.rmtree(folder / case / str(ranks) / "checkpoints/step_00000004")
        if cases:
            run_on_ranks(folder, __name__, str(folder), str(data_set), str(ranks), *cases, ranks=ranks)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage, precision, ranks", GRID)
def test_what_two_ranks_saved_other_numbers_of_ranks_load(stage: str, precision: str, ranks: int, runs: Path) -> None:
    """Weights, their average, moments, steps and options of the groups are equal, no tolerance; in float32 the run then ends as it
    would have."""
    folder = runs / f"{stage} {precision}"
    if stage != "zero0":
        saved, restored = torch.load(folder / "2.pt"), torch.load(folder / f"{ranks}.pt")
        assert saved["steps"] == [2] and saved["decay"] == [1.0, 0.0]
        assert not torch.equal(saved["logit_scale", "ema"].squeeze(), saved["logit_scale"])
        assert list(restored) == list(saved)
        for name, value in saved.items():
            same = torch.equal(value, restored[name]) if torch.is_tensor(value) else value == restored[name]
            assert same, name
    if precision == "fp32":
        assert_same_run(folder / str(ranks), folder / "2")
    assert not (folder / str(ranks) / "checkpoints/for_other_ranks").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", *(pytest.param(stage, marks=pytest.mark.full) for stage in ("zero2", "zero3"))])
def test_what_an_earlier_version_saved_in_another_order_goes_on(stage: str, data_set: Path, tmp_path: Path) -> None:
    """Loaded as it lies, every moment would be that of another weight."""
    case = f"{stage} fp32"
    run_on_ranks(tmp_path, __name__, str(tmp_path), str(data_set), "earlier", case, ranks=2)
    run, copy = (tmp_path / case / name for name in ("earlier", "2"))
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints/step_00000004")
    said = run_on_ranks(tmp_path, __name__, str(tmp_path), str(data_set), "2", case, ranks=2)
    assert "which laid the weights in another order: converting it" in said
    saved, restored = (torch.load(tmp_path / case / f"{name}.pt") for name in ("earlier", "2"))
    for name, value in saved.items():
        assert torch.equal(value, restored[name]) if torch.is_tensor(value) else value == restored[name], name
    assert_same_run(copy, run)
    states = [read_state(folder / "checkpoints/step_00000004") for folder in (run, copy)]
    assert [state["flat_order"] for state in states] == [1, 2]


def test_a_conversion_that_fails_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step").mkdir()
    said = resharding.convert(tmp_path / "step", tmp_path / "for_other_ranks/step")
    assert (
        isinstance(said, UserError) and "can't find *_optim_states.pt files" in str(said) and "room for the checkpoint" in str(said)
    )
    said = resharding.convert(tmp_path / "step", tmp_path / "for_other_ranks/step")
    assert isinstance(said, UserError) and "File exists" in str(said)
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: subprocess.CompletedProcess(words, -9, "Killed"))
    assert "ended with -9 (Killed)" in str(resharding.convert(tmp_path / "step", tmp_path / "for_other_ranks/step.1"))
