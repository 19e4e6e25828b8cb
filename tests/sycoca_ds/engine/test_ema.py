"""The moving average of the weights in real runs, against a loop over the weights that these runs had after each step: skipped
steps, a way back, a kill, other numbers of ranks, an average that is switched on and off."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.capacity.parameters import all_shapes
from sycoca_ds.capacity.states import Engine, Sharding
from sycoca_ds.config import OptimConfig, check_ema_decay
from sycoca_ds.engine.checkpoint.seal import sealed, step_folder
from sycoca_ds.engine.checkpoint.weights import open_weights
from sycoca_ds.engine.ema import Ema
from sycoca_ds.engine.policy import read_policy
from sycoca_ds.engine.preparation import check_before_start
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS
from tests.worlds.processes.launching import run_on_ranks
from tests.worlds.trainings.training import SMALL, average, train_here, weights

if TYPE_CHECKING:
    from sycoca_ds.engine.ranks.runtime import Runtime

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DECAY = 0.75
STEPS, SAVED = 6, 3
BROKEN = (2, 5, 6)
"""Forward passes whose loss is not a number: step 2 is skipped, steps 5 and 6 take the run back to SAVED."""
OPTIONS = ["--optim.ema-decay", str(DECAY), "--guard.rewind-after", "2", "--optim.global-batch-size", "12", "--data.lanes", "6"]
ALONE = "zero0 fp32 alone"
EVERY = (ALONE, *(f"{stage} {kind}" for stage in ("zero1", "zero2", "zero3", "zero3_offload") for kind in ("fp32", "bf16")))
EVERY += ("zero0 fp32",)
TODAY = (ALONE, "zero3 fp32")
"""Without ZeRO, and each weight cut for itself; cut end to end they stand below, and in the rest, which is the night's."""

# ---- in the processes of the runs ----------------------------------------------------------------------------------------------


def whole_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The float32 weights of all ranks put together by DeepSpeed's own getter; on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in engine.module.named_parameters():
        value = safe_get_full_fp32_param(parameter) if engine.zero_optimization_stage() else parameter
        found[name] = value.detach().cpu().clone()
    return found


def on_a_rank(runtime: Runtime, folder: str, data: str, job: str, *cases: str) -> None:
    for case in cases:
        {"record": record, "chain": go_on, "switch": switch}[job](runtime, Path(folder), data, case)


def options_of(case: str, data: str, out: Path, *more: str) -> list[str]:
    stage, precision = case.split()[:2]
    words = [*SMALL, *OPTIONS, "--run.ds-config", f"ds_configs/{stage}.json", "--run.precision", precision]
    return [*words, "--data.train", data, "--run.out", str(out), *more]


def breaking(runtime: Runtime, broken: tuple[int, ...]) -> Any:
    """SyCoCa._train of which these calls give a loss that is not a number, on one rank."""
    plain, calls = SyCoCa._train, []

    def train(self: SyCoCa, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(1)
        report = plain(self, **inputs)
        bad = len(calls) in broken and runtime.rank == runtime.world_size - 1
        return report | {"loss": report["loss"] * (float("nan") if bad else 1)}

    return train


def record(runtime: Runtime, folder: Path, data: str, case: str) -> None:
    """A run with faults; what its weights were at the start, after each step and after it went back, in CASE.pt."""
    events: list[tuple[str, dict[str, torch.Tensor]]] = []
    held: list[list[int]] = []

    class Recorded(Ema):
        def __init__(self, engine: Any, decay: float | None) -> None:
            super().__init__(engine, decay)
            events.append(("start", whole_weights(engine)))
            held.append(runtime.gather(sum(4 * piece.values.numel() for piece in self.pieces.values())))

        def update(self, *, taken: bool) -> None:
            super().update(taken=taken)
            events.append(("step", whole_weights(self._engine)))

        def restore(self, *found: Any) -> None:
            super().restore(*found)
            events.append(("restored", whole_weights(self._engine)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sycoca_ds.engine.start.Ema", Recorded)
        patch.setattr(SyCoCa, "_train", breaking(runtime, BROKEN))
        more = ["--optim.steps", str(STEPS), "--run.checkpoint-every", str(SAVED)]
        train_here(runtime, options_of(case, data, folder / case, *more))
    if runtime.leads:
        torch.save({"events": events, "bytes": held[0]}, folder / f"{case}.pt")


def go_on(runtime: Runtime, folder: Path, data: str, case: str) -> None:
    """The run in the folder goes on with this number of ranks, saves, and goes back to that once; each rank's pieces after every
    restoring in CASE.RANKS.RANK.pt."""
    pieces: list[dict[str, tuple[int, torch.Tensor]]] = []

    class Recorded(Ema):
        def restore(self, *found: Any) -> None:
            for piece in self.pieces.values():
                piece.values.fill_(float("nan"))
            super().restore(*found)
            pieces.append({name: (start, values.clone()) for name, (start, values) in self.pieces.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sycoca_ds.engine.start.Ema", Recorded)
        patch.setattr(SyCoCa, "_train", breaking(runtime, (2, 3) if (folder / case).exists() else ()))
        more = ["--optim.steps", str(STEPS), "--run.checkpoint-every", "1", "--run.keep-checkpoints", "9"]
        train_here(runtime, options_of(case, data, folder / case, *more))
    torch.save(pieces, folder / f"{case}.{runtime.world_size}.{runtime.rank}.pt")


def switch(runtime: Runtime, folder: Path, data: str, case: str) -> None:
    """Without an average; from step 2 on with one; from step 3 on without."""
    out = folder / case
    for decay, gone in (("None", ()), (str(DECAY), (3, 4)), ("None", (4,))):
        if gone:
            shutil.copytree(out, folder / f"{case} before {decay}")
        for step in gone:
            shutil.rmtree(step_folder(out / "checkpoints", step))
        more = ["--optim.ema-decay", decay, "--run.checkpoint-every", "1", "--run.keep-checkpoints", "9"]
        train_here(runtime, options_of(case, data, out, *more))


# ---- every stage, with skipped steps and a way back ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(data_set: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with the runs of the cases that are tested today, and what was written down of them."""
    folder = tmp_path_factory.mktemp("recorded")
    wanted = {item.callspec.params["case"] for item in request.session.items if "recorded" in getattr(item, "fixturenames", ())}
    for ranks, cases in ((0, [ALONE]), (2, [case for case in EVERY if case in wanted and case != ALONE])):
        if cases:
            run_on_ranks(folder, __name__, str(folder), str(data_set), "record", *cases, ranks=ranks)
    return folder


def slow_average(events: list[tuple[str, dict[str, torch.Tensor]]], dtype: torch.dtype) -> dict[int, dict[str, torch.Tensor]]:
    """After which forward pass -> the average of a run's weights, one tensor after the other; 0: the start."""
    (what, ema), *later = events
    assert what == "start"
    found, step = {0: {name: value.to(dtype) for name, value in ema.items()}}, 0
    ema = found[0]
    for what, now in later:
        if what == "restored":
            ema = found[SAVED]
            continue
        step += 1
        if step not in BROKEN:
            ema = {name: value + (1 - DECAY) * (now[name].to(dtype) - value) for name, value in ema.items()}
        found[step] = ema
    return found


CASES = [pytest.param(case, marks=() if case in TODAY else pytest.mark.full) for case in EVERY]


@pytest.mark.parametrize("case", CASES)
def test_the_average_is_that_of_a_slow_loop(case: str, recorded: Path) -> None:
    """Bit for bit at both checkpoints; and the formula's in float64. Skipped steps leave it alone, the way back takes it along."""
    events, out = torch.load(recorded / f"{case}.pt")["events"], recorded / case / "checkpoints"
    assert [what for what, _ in events] == ["start", *["step"] * 6, "restored", *["step"] * 3]
    last = len(events) - 2
    rounded, exact = slow_average(events, torch.float32), slow_average(events, torch.float64)
    for step, after in ((SAVED, SAVED), (STEPS, last)):
        saved = open_weights(step_folder(out, step), ema=True)
        assert saved.ema_decay == DECAY and list(saved.weights) == list(events[0][1])
        for name, value in saved.weights.items():
            assert torch.equal(value, rounded[after][name]), (step, name)
            torch.testing.assert_close(value.double(), exact[after][name], rtol=1e-6, atol=1e-8)
    assert all(torch.equal(now, then) for now, then in zip(events[7][1].values(), events[3][1].values(), strict=True))
    live = weights(recorded / case)
    assert all(torch.equal(live[name], value) for name, value in events[-1][1].items())
    assert not any(torch.equal(live[name], value) for name, value in saved.weights.items()), "the average is not the weights"


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0] != ALONE and "fp32" in c.values[0]])
def test_it_is_the_average_of_one_process_without_zero(case: str, recorded: Path) -> None:
    mine, reference = average(recorded / case), average(recorded / ALONE)
    for name, value in reference.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_every_rank_holds_its_part_of_it_and_the_planner_counts_that(case: str, recorded: Path) -> None:
    stage, precision = case.split()[:2]
    held, stored = torch.load(recorded / f"{case}.pt")["bytes"], open_weights(recorded / case)
    total = sum(value.numel() for value in stored.weights.values())
    assert sum(held) == 4 * total * (len(held) if stage == "zero0" else 1)
    sharding = Sharding.of(read_policy(f"ds_configs/{stage}.json"), precision, stage)
    with_it, without = (Engine(all_shapes(stored.config.model), sharding, len(held), ema).at_rest() for ema in (True, False))
    assert max(held) == with_it.optimizer - without.optimizer + with_it.host - without.host


# ---- other numbers of ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("case", ["zero1 bf16", "zero2 fp32", "zero3 fp32"])
def test_two_ranks_then_one_then_three_cut_it_anew_and_change_no_number(case: str, data_set: Path, tmp_path: Path) -> None:
    """Each goes on from the other's, and goes back to a checkpoint of its own, which is not one of other ranks. (That two ranks' go
    to one and to three: checkpoint/test_resharding.py, every day.)"""
    out = tmp_path / case
    run_on_ranks(tmp_path, __name__, str(tmp_path), str(data_set), "chain", case, ranks=2)
    for ranks, found_at in ((1, 2), (3, 3)):
        for folder in sealed(out / "checkpoints"):
            if int(folder.name[5:]) > found_at:
                shutil.rmtree(folder)
        before = open_weights(out, ema=True)
        assert before.state["step"] == found_at
        output = run_on_ranks(tmp_path, __name__, str(tmp_path), str(data_set), "chain", case, ranks=0 if ranks == 1 else ranks)
        assert f"went back to step {found_at + 1}" in output
        own = open_weights(step_folder(out / "checkpoints", found_at + 1), ema=True)
        for number, expected in enumerate((before.weights, own.weights)):
            whole = {name: torch.full_like(value.flatten(), float("nan")) for name, value in expected.items()}
            for rank in range(ranks):
                for name, (start, values) in torch.load(tmp_path / f"{case}.{ranks}.{rank}.pt")[number].items():
                    whole[name][start : start + values.numel()] = values
            assert all(torch.equal(whole[name].view(value.shape), value) for name, value in expected.items()), number


# ---- on, off, not there --------------------------------------------------------------------------------------------------------


def test_an_average_that_is_switched_on_starts_there_and_one_that_is_switched_off_is_gone(data_set: Path, tmp_path: Path) -> None:
    """Nothing else changes: the weights are those of the run that never had one."""
    case = "zero1 fp32"
    output = run_on_ranks(tmp_path, __name__, str(tmp_path), str(data_set), "switch", case, ranks=0)
    assert output.count("the EMA of the weights starts at those of step 2: the checkpoint has none") == 1
    assert output.count(f"the checkpoint's EMA of the weights (decay {DECAY}) is dropped: optim.ema-decay is None") == 1
    assert "other settings" not in output and f"ema: decay {DECAY}, about the last 4 steps" in output
    never, on, off = tmp_path / f"{case} before {DECAY}", tmp_path / f"{case} before None", tmp_path / case
    at = {step: open_weights(step_folder(never / "checkpoints", step)).weights for step in (2, 3, 4)}
    for run in (on, off):
        assert all(torch.equal(value, at[4][name]) for name, value in weights(run).items())
    ema = at[2]
    for step in (3, 4):
        ema = {name: value + (1 - DECAY) * (at[step][name] - value) for name, value in ema.items()}
        saved = open_weights(step_folder(on / "checkpoints", step), ema=True).weights
        assert all(torch.equal(value, ema[name]) for name, value in saved.items())
    for run in (never, off):
        with pytest.raises(UserError, match=r"^--ema: checkpoint .*step_00000004 was saved without optim.ema-decay"):
            open_weights(run, ema=True)
        assert not list((run / "checkpoints/step_00000004").glob("ema_*"))


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    config = replace(PRESETS["tiny"], optim=replace(PRESETS["tiny"].optim, ema_decay=decay))
    with pytest.raises(UserError, match=rf"^optim.ema-decay = {decay}: expected a number above 0 and below 1"):
        check_before_start(config)
    check_ema_decay(OptimConfig().ema_decay)
    check_ema_decay(0.9999)
