"""Runs that go on with another number of ranks: real processes, every ZeRO stage, bit by bit what was saved."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint import resharding
from tests.worlds import REPOSITORY
from tests.worlds.training import assert_same_run, run

OPTIONS = ["--optim.global-batch-size", "12", "--data.lanes", "6", "--optim.weight-decay", "1.0"]
WATCHED = """\
import sys
sys.path[0] = {repository!r}
import torch
from sycoca_ds.engine.checkpoint import restoring, saving
from sycoca_ds.train import end_process, on_every_rank, run_command

def write_down(engine, name):
    '''Every tensor and number of a step, put together from all ranks.'''
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    state = {{}}
    if engine.zero_optimization_stage() == 2:  # DeepSpeed links the getters of a second group before it has a state
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for parameter_name, parameter in engine.module.named_parameters():
        state[parameter_name] = safe_get_full_fp32_param(parameter).cpu()
        for key in ("exp_avg", "exp_avg_sq"):
            state[parameter_name, key] = safe_get_full_optimizer_state(parameter, key).cpu()
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            state[parameter_name, "used"] = parameter.detach().float().clone()
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    state["steps"] = sorted({{int(own["step"]) for own in inner.state.values()}})
    shared = [own["step"].data_ptr() for own in inner.state.values() if torch.is_tensor(own["step"])]
    state["own step"] = len(set(shared)) == len(shared)
    beside = [own["step"].device == p.device for p, own in inner.state.items() if torch.is_tensor(own["step"])]
    state["beside its weights"] = all(beside)
    state["decay"] = [group["weight_decay"] for group in engine.optimizer.param_groups]
    if engine.global_rank == 0:
        torch.save(state, {folder!r} + "/" + name)

def save(engine, runtime, run, *, step, **more):
    if step == 2:
        write_down(engine, "saved.pt")
    return plain_save(engine, runtime, run, step=step, **more)

def restore(engine, runtime, *more):
    state = plain_restore(engine, runtime, *more)
    write_down(engine, "restored_" + str(runtime.world_size) + ".pt")
    return state

plain_save, plain_restore = saving.save, restoring.restore
saving.save, restoring.restore = save, restore
end_process(run_command(on_every_rank))
"""


def interrupted(through: Path, out: Path) -> Path:
    """A copy of a run as it was at its first checkpoint, step 2 of 4."""
    shutil.copytree(through, out)
    shutil.rmtree(out / "checkpoints/step_00000004")
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, precision, counts",
    [
        ("zero1", "bf16", [3]),
        ("zero2", "fp32", [3]),
        ("zero3", "fp32", [1, 3]),
        ("zero3", "bf16", [3]),
        ("zero3_offload", "fp32", [3]),
    ],
)
def test_what_two_ranks_saved_other_numbers_of_ranks_load(
    stage: str, precision: str, counts: list[int], data_set: Path, tmp_path: Path
) -> None:
    """Weights, moments, steps and options of the groups are equal, no tolerance; in float32 the run then ends as it would have."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED.format(repository=str(REPOSITORY), folder=str(tmp_path)))
    options = [*OPTIONS, "--run.ds-config", f"ds_configs/{stage}.json", "--run.precision", precision]
    through = run(tmp_path / "through", data_set, *options, ranks=2, script=script)
    saved = torch.load(tmp_path / "saved.pt")
    assert saved["steps"] == [2] and saved["decay"] == [1.0, 0.0]
    for ranks in counts:
        out = run(interrupted(through, tmp_path / f"on_{ranks}"), data_set, *options, ranks=ranks, script=script)
        restored = torch.load(tmp_path / f"restored_{ranks}.pt")
        assert list(restored) == list(saved)
        for name, value in saved.items():
            same = torch.equal(value, restored[name]) if torch.is_tensor(value) else value == restored[name]
            assert same, (ranks, name)
        if precision == "fp32":
            assert_same_run(out, through)
        assert not (out / "checkpoints/for_other_ranks").exists()


def test_without_zero_every_rank_holds_everything(data_set: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--run.ds-config", "ds_configs/zero0.json"]
    through = run(tmp_path / "through", data_set, *options, ranks=2)
    assert_same_run(run(interrupted(through, tmp_path / "alone"), data_set, *options, ranks=0), through)


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
