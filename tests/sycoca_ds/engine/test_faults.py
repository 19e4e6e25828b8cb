"""What goes wrong around a training, done to real runs: what is said, what is left, and that nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from sycoca_ds.engine.checkpoint.seal import read_state, sealed
from sycoca_ds.engine.safety.watchdog import EXIT_HANG
from tests.worlds.processes.launching import LIMIT, finish, start, start_warm
from tests.worlds.processes.watching import wait_until
from tests.worlds.trainings.event_files import points
from tests.worlds.trainings.hurting import hurt
from tests.worlds.trainings.training import SMALL, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 10
QUICK = ["--watch.beat-seconds", "0.5", "--watch.silent-seconds", "6", "--watch.step-seconds", "8"]


def options(data: Path, out: Path, *more: str, steps: int = STEPS) -> list[str]:
    lasting = ["--optim.steps", str(steps), "--run.checkpoint-every", "4", "--run.ds-config", "ds_configs/zero1.json"]
    return [*SMALL, "--data.train", str(data), "--run.out", str(out), *lasting, *more]


def curve(out: Path) -> list[tuple[int, float]]:
    path = out / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def status(out: Path) -> dict:
    return json.loads((out / "run_status.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def undisturbed(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = finish(start_warm(options(data_set, out), ranks=2))
    assert code == 0, output[-3000:]
    return out


def test_a_second_training_in_the_folder_is_refused_by_name(data_set: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    slow = hurt(tmp_path, "time.sleep(0.7)")
    first = start_warm(options(data_set, out), ranks=2, script=slow)
    assert wait_until(lambda: curve(out), LIMIT)
    owner = json.loads((out / "running.json").read_text())
    code, output = finish(start_warm(options(data_set, out), ranks=2))
    assert code == 2 and output.count("\nerror: ") == 1 and "Traceback" not in output
    assert f"{out} is in use: process {owner['pid']} on {os.uname().nodename} trains there since" in output
    code, output = finish(first)
    assert code == 0 and curve(out) == curve(undisturbed), output[-3000:]
    assert not (out / "running.json").exists()


def test_a_rank_that_is_stopped_is_named_and_the_job_ends(data_set: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    process = start_warm(options(data_set, out, *QUICK, steps=5000), ranks=2)
    assert wait_until(lambda: (out / "heartbeats/rank_00001.json").exists() and sealed(out / "checkpoints"), LIMIT)
    rank_1 = json.loads((out / "heartbeats/rank_00001.json").read_text())["pid"]
    os.kill(rank_1, signal.SIGSTOP)
    began = time.monotonic()
    code, output = finish(process)
    assert code == EXIT_HANG and time.monotonic() - began < 40, output[-3000:]
    said = json.loads((out / "failures/rank_00000.json").read_text())
    assert said["kind"] == "hang" and said["message"].startswith(f"rank 1 on {os.uname().nodename} gives no sign of life for")
    assert said["message"] in output
    assert "run_steps" in (out / "stacks/rank_00000.txt").read_text()
    assert status(out)["status"] == "running", "nobody was left to say otherwise; running.json tells that it is over"
    code, output = finish(start_warm(options(data_set, out, *QUICK, steps=status(out)["step"] + 2), ranks=2))
    assert code == 0 and "resumed from" in output and not (out / "failures").exists(), output[-3000:]


@pytest.mark.full
@pytest.mark.parametrize(
    "fault, where",
    [
        ("time.sleep(1000 if rank == 1 and n == 6 else 0)", "step"),
        ("if n == 5 and rank == 1: TrainSet.__getitems__ = lambda *_: time.sleep(1000)", "data"),
    ],
)
def test_a_rank_that_is_stuck_is_named(fault: str, where: str, data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, output = finish(start_warm(options(data_set, out, *QUICK), ranks=2, script=hurt(tmp_path, fault)))
    assert code == EXIT_HANG, output[-3000:]
    said = json.loads((out / "failures/rank_00000.json").read_text())["message"]
    assert f"rank 1 on {os.uname().nodename} is stuck in {where} of step 6, the others wait" in said
    assert "sleep" in (out / "stacks/rank_00001.txt").read_text() or "hurt_" in (out / "stacks/rank_00001.txt").read_text()


@pytest.mark.parametrize(
    "stage, ranks",
    [("zero0", 2), *(pytest.param(*cell, marks=pytest.mark.full) for cell in (("zero1", 2), ("zero3", 2), ("zero3_offload", 1)))],
)
def test_a_spike_is_skipped_as_a_gradient_that_is_not_finite_is(stage: str, ranks: int, data_set: Path, tmp_path: Path) -> None:
    """The weights are those of a run whose gradient of that step was NaN, bit for bit."""
    guard = ["--guard.spike-window", "3", "--guard.spike-sigma", "20", "--run.ds-config", f"ds_configs/{stage}.json"]
    outs = {}
    for name, factor in (("spike", "1e4"), ("nan", "float('nan')")):
        outs[name] = tmp_path / name
        script = hurt(tmp_path, f"report['loss'] = report['loss'] * ({factor} if rank == 0 and n == 6 else 1)")
        code, output = finish(start_warm(options(data_set, outs[name], *guard, steps=8), ranks=ranks, script=script))
        assert code == 0, output[-3000:]
        assert output.count("step 6 skipped: " + ("spike: loss" if name == "spike" else "not finite")) == 1, output[-3000:]
        (line,) = (outs[name] / "skipped.jsonl").read_text().splitlines()
        told = json.loads(line)
        assert told["step"] == 6 and len(told["ranks"]) == ranks and sum(len(rank["keys"]) for rank in told["ranks"]) == 16
        state = read_state(sealed(outs[name] / "checkpoints")[0])["extra"]["guard"]
        assert state["skipped"] == 1 and state["in_row"] == 0 and len(state["history"][0]) == 3
    assert same_weights(outs["spike"], outs["nan"])
    spiky = [value for step, value in curve(outs["spike"]) if step != 6]
    assert spiky == [value for step, value in curve(outs["nan"]) if step != 6]


def test_a_level_that_has_risen_for_good_does_not_end_the_run(data_set: Path, tmp_path: Path) -> None:
    guard = ["--guard.spike-window", "3", "--guard.spike-sigma", "20", "--guard.rewind-after", "0"]
    guard += ["--run.ds-config", "ds_configs/zero0.json"]
    script = hurt(tmp_path, "report['loss'] = report['loss'] * (1e4 if n >= 6 else 1)")
    code, output = finish(start_warm(options(data_set, tmp_path / "run", *guard, steps=18), ranks=0, script=script))
    assert code == 0, output[-3000:]
    skipped = [json.loads(line)["step"] for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert skipped == list(range(6, 6 + len(skipped))) and 2 <= len(skipped) <= 8, "then it is the usual level"


def test_a_gradient_of_exactly_zero_is_an_error(data_set: Path, tmp_path: Path) -> None:
    script = hurt(tmp_path, "report['loss'] = report['loss'] * (0 if n == 3 else 1)")
    code, output = finish(start_warm(options(data_set, tmp_path / "run"), ranks=2, script=script))
    assert code == 1 and "the gradient is exactly zero" in output
    assert status(tmp_path / "run")["status"] == "failed" and status(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("stage", ["zero1", pytest.param("zero3", marks=pytest.mark.full)])
def test_a_run_folder_may_have_any_name(stage: str, data_set: Path, tmp_path: Path) -> None:
    """Also one that is a pattern: the run goes on from its checkpoints, at another number of ranks, too, and they open."""
    out = tmp_path / "a[1] *b" / "run"
    for steps, ranks in ((2, 0), (4, 0), (6, 2)):
        more = ["--run.ds-config", f"ds_configs/{stage}.json"]
        code, output = finish(start_warm(options(data_set, out, *more, steps=steps), ranks=ranks))
        assert code == 0 and ("resumed from" in output) == (steps > 2), output[-3000:]
    assert weights(out)


@pytest.mark.parametrize("stage", ["zero1", *(pytest.param(stage, marks=pytest.mark.full) for stage in ("zero0", "zero3"))])
def test_many_skipped_steps_take_the_run_back_and_over_the_data(stage: str, data_set: Path, tmp_path: Path) -> None:
    """Then it is the run that another process starts from that checkpoint with the data passed over, bit for bit."""
    out, other = tmp_path / "run", tmp_path / "other"
    more = ["--guard.rewind-after", "2", "--run.ds-config", f"ds_configs/{stage}.json"]
    script = hurt(tmp_path, "report['loss'] = report['loss'] * (float('nan') if n in (6, 7) else 1)")
    code, output = finish(start_warm(options(data_set, out, *more), ranks=2, script=script))
    assert code == 0 and "went back to step 4; from now on the data are 3 steps further than the steps" in output, output[-3000:]
    assert [step for step, _ in curve(out)] == list(range(1, STEPS + 1))
    assert points(out) == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in curve(out)], "TensorBoard has each step once"
    last = read_state(sealed(out / "checkpoints")[0])
    assert last["step"] == STEPS and last["samples"] == (STEPS + 3) * 16 and last["extra"]["passed_over"] == 3
    shutil.copytree(out, other)
    for folder in sealed(other / "checkpoints")[:-1]:
        shutil.rmtree(folder)
    (left,) = sealed(other / "checkpoints")
    assert left.name == "step_00000004"
    state = read_state(left)
    state["extra"]["passed_over"] = 3
    from sycoca_ds.engine.checkpoint.seal import write_seal

    write_seal(left, state)
    code, output = finish(start_warm(options(data_set, other, *more), ranks=2))
    assert code == 0 and "resumed from" in output, output[-3000:]
    assert curve(other) == curve(out) and same_weights(other, out)


def test_rewinds_with_a_checkpoint_in_between_are_not_in_a_row(data_set: Path, tmp_path: Path) -> None:
    """The run may go back once before the next save: from step 7 to 4, after that of step 8 from 12 to 8, not a third time."""
    out = tmp_path / "run"
    more = ["--guard.rewind-after", "2", "--guard.max-rewinds", "1"]
    script = hurt(tmp_path, "report['loss'] = report['loss'] * (float('nan') if n in (6, 7, 14, 15, 18, 19) else 1)")
    code, output = finish(start_warm(options(data_set, out, *more, steps=20), ranks=0, script=script))
    went_to = [line.split()[4] for line in output.splitlines() if line.startswith("went back to step")]
    assert went_to == ["4;", "8;"], output[-3000:]
    assert code == 1 and "2 steps in a row to step 12 were skipped" in output and "after 1 rewinds" in output, output[-3000:]


@pytest.mark.full
def test_a_run_without_a_checkpoint_to_go_back_to_ends(data_set: Path, tmp_path: Path) -> None:
    script = hurt(tmp_path, "report['loss'] = report['loss'] * float('nan')")
    more = ["--guard.rewind-after", "2", "--run.max-skipped-steps", "4"]
    code, output = finish(start_warm(options(data_set, tmp_path / "run", *more), ranks=2, script=script))
    assert code == 1 and "4 steps in a row to step 4 were skipped" in output, output[-3000:]


@pytest.mark.full
def test_the_best_checkpoint_stays_also_when_its_save_ends_late(data_set: Path, tmp_path: Path) -> None:
    """A slow disk: each save is waited for by the next one. The newest alone is kept, and step 4 is the best."""
    out = tmp_path / "run"
    more = ["--data.validation", str(data_set), "--run.picture-every", "2", "--run.pictures", "0", "--run.validation-samples", "8"]
    more += ["--run.checkpoint-every", "2", "--run.keep-checkpoints", "1"]
    late = (
        "from sycoca_ds.engine.checkpoint.saving import Saver; from sycoca_ds.engine.monitoring.best import Best; "
        "Saver.look = lambda self: None; "
        "Best.validated = lambda self, step, numbers: self._values.update({step: -abs(step - 4.0)})"
    )
    code, output = finish(start_warm(options(data_set, out, *more, steps=8), ranks=0, script=hurt(tmp_path, before=late)))
    assert code == 0, output[-3000:]
    assert json.loads((out / "best.json").read_text())["step"] == 4
    assert [read_state(folder)["step"] for folder in sealed(out / "checkpoints")] == [8, 4]


FLIP = (
    "self.text_decoder.ln_final.register_forward_hook("
    "lambda module, given, out: out.register_hook(lambda slope: slope * {factor}) and None) if rank == 1 and {when} else None"
)
"""Slopes in one rank's text decoder are wrong, and with them its gradients; no other rank's, and no loss."""


def test_a_device_that_computed_something_else_is_named_and_the_step_taken(
    data_set: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """A gradient that is wrong once, while the loss is right: the run ends as if nothing had happened."""
    out = tmp_path / "run"
    more = ["--guard.spike-window", "3", "--guard.spike-sigma", "20", "--guard.recompute"]
    script = hurt(tmp_path, "self.text_decoder.ln_final._forward_hooks.clear()", FLIP.format(when="n == 6", factor="1e5"))
    code, output = finish(start_warm(options(data_set, out, *more), ranks=2, script=script))
    assert code == 0 and "a device computed something else the second time, of rank 1" in output, output[-3000:]
    assert curve(out) == curve(undisturbed) and same_weights(out, undisturbed)


@pytest.mark.full
def test_data_that_are_not_finite_are_computed_again_and_not_taken_for_a_device(data_set: Path, tmp_path: Path) -> None:
    """DeepSpeed finds them first, both times, and never calls its optimizer: the guard has no norm of its own then."""
    out = tmp_path / "run"
    script = hurt(tmp_path, "report['loss'] = report['loss'] * (float('nan') if n in (6, 7) else 1)")
    code, output = finish(start_warm(options(data_set, out, "--guard.recompute"), ranks=2, script=script))
    assert code == 0 and output.count("step 6 skipped: not finite") == 1 and "something else" not in output, output[-3000:]


@pytest.mark.full
def test_data_that_make_a_spike_are_not_taken_for_a_device(data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["--guard.spike-window", "3", "--guard.spike-sigma", "20", "--guard.recompute"]
    both = FLIP.format(when="n in (6, 7)", factor="1e5")  # the second time as well: the computation repeats
    script = hurt(tmp_path, "self.text_decoder.ln_final._forward_hooks.clear()", both)
    code, output = finish(start_warm(options(data_set, out, *more), ranks=2, script=script))
    assert code == 0 and "step 6 skipped: spike" in output and "something else" not in output, output[-3000:]


@pytest.mark.full
def test_a_device_that_never_repeats_itself_ends_the_run(data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["--guard.spike-window", "3", "--guard.spike-sigma", "20", "--guard.recompute"]
    never_twice = FLIP.format(when="n > 5", factor="1e4 * n")
    script = hurt(tmp_path, "self.text_decoder.ln_final._forward_hooks.clear()", never_twice)
    code, output = finish(start_warm(options(data_set, out, *more), ranks=2, script=script))
    assert code == 1 and "FaultyDevice: step 6" in output and "(rank 1)" in output, output[-3000:]
    assert json.loads((out / "failures/rank_00000.json").read_text())["kind"] == "device"


@pytest.mark.full
def test_output_that_nobody_reads_is_dropped(data_set: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    process = start(options(data_set, out), ranks=2)
    assert process.stdout.readline()
    process.stdout.close()  # as `| head -1`
    assert process.wait(LIMIT) == 0
    assert status(out)["status"] == "completed" and curve(out) == curve(undisturbed)


@pytest.mark.parametrize(
    "who, ranks", [("runner", 1), *(pytest.param(who, 2, marks=pytest.mark.full) for who in ("runner", "launch.py"))]
)
def test_ranks_whose_launcher_is_killed_save_and_end(who: str, ranks: int, data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(options(data_set, out, steps=5000), ranks=ranks)
    assert wait_until(lambda: curve(out), LIMIT)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid if who == "runner" else int(children[0]), signal.SIGKILL)
    assert wait_until(lambda: status(out)["status"] == "preempted", 60)
    output = finish(process)[1]
    assert "the launcher is gone: saving after this step" in output
    assert sealed(out / "checkpoints")[0].name == f"step_{status(out)['step']:08d}"


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk with room for one checkpoint and what is left free beside it."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=69000k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs to be root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_costs_the_save_not_the_run(small_disk: Path, data_set: Path, undisturbed: Path) -> None:
    out = small_disk / "run"
    code, output = finish(start_warm(options(data_set, out), ranks=2))
    assert code == 2 and f"step {STEPS} could not be saved" in output and "Traceback" not in output, output[-3000:]
    assert "step 8 is NOT saved" in output and "the one of step 4 stays; the run goes on" in output
    assert [folder.name for folder in sealed(out / "checkpoints")] == ["step_00000004"]
    assert status(out)["status"] == "failed" and status(out)["step"] == STEPS and status(out)["checkpoint"] == 4
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    code, output = finish(start_warm(options(data_set, out), ranks=2))
    assert code == 0 and "resumed from" in output and same_weights(out, undisturbed)


def test_a_host_without_room_for_a_copy_waits_while_it_writes(data_set: Path, tmp_path: Path, undisturbed: Path) -> None:
    """The files are those of the usual way, byte for byte, and a run goes on from them as if nothing had happened."""
    out = tmp_path / "run"
    little = "import sycoca_ds.engine.checkpoint.snapshot as ways; ways.available = lambda: (1 << 30) + (1 << 20) * (1 + 9 * rank)"
    script = hurt(tmp_path, "os.kill(os.getpid(), signal.SIGTERM) if n == 6 else None", little)
    code, output = finish(start_warm(options(data_set, out), ranks=2, script=script))
    assert code == 75 and "saved" in output, output[-3000:]
    (said,) = [line for line in output.splitlines() if "do not fit" in line]
    assert said.startswith("save: 0.0 GB do not fit beside the run (1.1 GB free): written while the run waits")
    assert [read_state(folder)["step"] for folder in sealed(out / "checkpoints")] == [6, 4]
    usual, straight = (read_state(run / "checkpoints/step_00000004") for run in (undisturbed, out))
    assert straight["files"] == usual["files"] and len(usual["files"]) > 6
    code, output = finish(start_warm(options(data_set, out), ranks=2))
    assert code == 0 and "resumed from" in output and "do not fit" not in output, output[-3000:]
    assert curve(out) == curve(undisturbed) and same_weights(out, undisturbed)


def test_checkpoints_that_are_all_gone_are_no_fresh_start(data_set: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    for folder in sealed(out / "checkpoints"):
        shutil.rmtree(folder)
    code, output = finish(start_warm(options(data_set, out), ranks=2))
    assert code == 2 and f"says that a checkpoint of step {STEPS} was saved, and there is none" in output, output[-3000:]
