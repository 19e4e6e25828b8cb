"""Real runs of `sycoca_ds/train.py` in real processes: parity of ranks and ZeRO stages, kill and resume, refusals.

Every launch has its own port and process group, a hard time limit, and must leave no process behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint import damage, load_for_inference, newest_whole, sealed

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 240
STEPS = 4
SMALL = [
    "--preset",
    "tiny",
    "--model.image.image-size",
    "24",
    "--model.image.patch-size",
    "6",
    "--model.image.layers",
    "2",
    "--model.text.layers",
    "2",
    "--model.text-decoder.layers",
    "1",
    "--model.image-decoder.layers",
    "1",
    "--optim.global-batch-size",
    "16",
    "--optim.steps",
    str(STEPS),
    "--optim.warmup-steps",
    "2",
    "--data.lanes",
    "4",
    "--data.workers",
    "0",
    "--run.log-every",
    "1",
    "--run.precision",
    "fp32",
    "--run.checkpoint-every",
    "2",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(options: list[str], ranks: int) -> subprocess.Popen:
    """Starts a run in a process group of its own; `ranks` 0 runs train.py without a launcher."""
    program = [sys.executable, str(REPOSITORY / "sycoca_ds/train.py")]
    if ranks:
        launcher = Path(sys.executable).with_name("deepspeed")
        program = [str(launcher), "--num_accelerators", str(ranks), "--master_port", str(free_port()), program[1]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja stands beside the interpreter
    return subprocess.Popen(
        [*program, *options],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def members(group: int) -> list[int]:
    """Live processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """(status, output) within the limit; kills the group and fails if it takes longer or leaves a process behind."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end within {LIMIT} s:\n{process.communicate()[0][-3000:]}")
    deadline = time.monotonic() + 10
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = members(process.pid)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"processes {left} outlived their launcher:\n{output[-3000:]}")
    return process.returncode, output


def run(out: Path, data: Path, *options: str, ranks: int) -> Path:
    status, output = finish(start([*SMALL, "--data.train", str(data), "--run.out", str(out), *options], ranks))
    assert status == 0, output[-4000:]
    assert json.loads((out / "run_status.json").read_text())["status"] == "completed", output[-2000:]
    return out


def losses(out: Path) -> list[dict[str, float]]:
    """The training records in order, the numbers that depend on the clock left out."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    return [
        {name: value for name, value in record.items() if name not in ("samples_per_second", "data_wait")}
        for record in records
        if "loss" in record
    ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_for_inference(out).model.state_dict()


@pytest.fixture(scope="module")
def alone(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, no ZeRO: the reference."""
    return run(tmp_path_factory.mktemp("runs") / "alone", data_set, "--run.ds-config", "ds_configs/zero0.json", ranks=0)


@pytest.fixture(scope="module")
def two_ranks(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO-3."""
    return run(
        tmp_path_factory.mktemp("runs") / "two",
        data_set,
        "--data.validation",
        str(data_set),
        "--run.validation-samples",
        "16",
        "--run.pictures",
        "2",
        ranks=2,
    )


def assert_same_run(out: Path, reference: Path) -> None:
    """Losses to 1e-5 relative and, after four AdamW steps at up to 1e-3, weights to 2e-5 absolute (float32, sums in another
    order)."""
    for record, expected in zip(losses(out), losses(reference), strict=True):
        for name in ("loss", "itc", "ic", "mim", "logit_scale"):
            assert record[name] == pytest.approx(expected[name], rel=1e-5), (record["step"], name)
    mine, theirs = weights(out), weights(reference)
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_two_ranks_with_zero_3_equal_one_rank_without(two_ranks: Path, alone: Path) -> None:
    assert_same_run(two_ranks, alone)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3_offload"])
def test_the_other_stages_equal_no_zero(stage: str, data_set: Path, alone: Path, tmp_path: Path) -> None:
    assert_same_run(run(tmp_path / stage, data_set, "--run.ds-config", f"ds_configs/{stage}.json", ranks=2), alone)


def test_a_run_leaves_checkpoint_curves_pictures_and_captions(two_ranks: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(two_ranks / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    board.Reload()
    tags = board.Tags()
    wanted = {
        "loss/total",
        "loss/itc",
        "loss/ic",
        "loss/mim",
        "optimizer/lr",
        "optimizer/grad_norm",
        "optimizer/logit_scale",
        "speed/samples_per_second",
        "speed/data_wait_share",
        "validation/itc",
    }
    assert wanted <= set(tags["scalars"])
    assert [event.step for event in board.Scalars("loss/total")] == [1, 2, 3, 4]
    assert [event.value for event in board.Scalars("loss/itc")] == pytest.approx([r["itc"] for r in losses(two_ranks)])
    assert "masks_and_reconstruction" in tags["images"] and "captions/text_summary" in tags["tensors"]
    assert [folder.name for folder in sealed(two_ranks / "checkpoints")] == ["step_00000004", "step_00000002"]
    assert newest_whole(two_ranks / "checkpoints") == (two_ranks / "checkpoints/step_00000004", [])


def test_a_run_killed_in_the_middle_resumes_to_the_same_bits(two_ranks: Path, data_set: Path, tmp_path: Path) -> None:
    """kill -9 of the whole group right after the first checkpoint; the same command again ends with the same weights and
    losses, bit for bit, as the run that nobody killed."""
    out = tmp_path / "killed"
    options = [
        *SMALL,
        "--data.train",
        str(data_set),
        "--data.validation",
        str(data_set),
        "--run.validation-samples",
        "16",
        "--run.pictures",
        "2",
        "--run.out",
        str(out),
    ]
    process = start(options, ranks=2)
    seal, deadline = out / "checkpoints/step_00000002/state.json", time.monotonic() + LIMIT
    while not seal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert seal.exists(), output[-3000:]
    shutil.rmtree(out / "checkpoints/step_00000004", ignore_errors=True)  # in case it got that far
    (out / "checkpoints/step_00000004").mkdir()  # an interrupted save must not be taken for a checkpoint
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss": 1')  # killed in the middle of a line
    run(out, data_set, "--data.validation", str(data_set), "--run.validation-samples", "16", "--run.pictures", "2", ranks=2)
    assert losses(out) == losses(two_ranks)
    mine, theirs = weights(out), weights(two_ranks)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_sigterm_saves_and_the_next_start_goes_on(data_set: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    options = [
        *SMALL,
        "--data.train",
        str(data_set),
        "--run.out",
        str(out),
        "--run.ds-config",
        "ds_configs/zero0.json",
        "--run.checkpoint-every",
        "100",
    ]
    process = start(options, ranks=0)
    deadline = time.monotonic() + LIMIT
    while not (out / "run_status.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    status, output = finish(process)
    assert status == 75, output[-3000:]
    stopped = json.loads((out / "run_status.json").read_text())
    assert stopped["status"] == "preempted" and 0 < stopped["step"] < STEPS
    run(out, data_set, "--run.ds-config", "ds_configs/zero0.json", ranks=0)
    assert losses(out) == losses(alone)


def refusal(data: Path, out: Path, *options: str) -> str:
    """The one error line of a run that must be refused."""
    status, output = finish(start([*SMALL, "--data.train", str(data), "--run.out", str(out), *options], ranks=0))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in output, output[-3000:]
    return lines[0]


def test_checkpoints_that_do_not_fit_are_refused(alone: Path, data_set: Path) -> None:
    assert "saved with model.image.layers = 2, this run has 3" in refusal(
        data_set, alone, "--run.ds-config", "ds_configs/zero0.json", "--model.image.layers", "3"
    )
    assert "0 as ZeRO stage, this run has 3: resume with 0" in refusal(data_set, alone)


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(alone: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(alone, copy)
    newest, before = sealed(copy / "checkpoints")
    victim = newest / "mp_rank_00_model_states.pt"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert f"{victim} is damaged" in damage(newest)
    folder, problems = newest_whole(copy / "checkpoints")
    assert folder == before and len(problems) == 1 and str(victim) in problems[0]
    with pytest.raises(UserError, match="is damaged"):
        load_for_inference(newest)
    (before / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        newest_whole(copy / "checkpoints")
    with pytest.raises(UserError, match="no finished checkpoint"):
        load_for_inference(tmp_path)


def test_without_data_the_default_command_stops_at_once_and_says_what_builds_it() -> None:
    """`deepspeed sycoca_ds/train.py` with nothing else: the 930M preset, refused before any process group or weight."""
    status, output = finish(start([], ranks=2))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(lines) == 1, output[-3000:]
    assert "data.train is not set" in lines[0] and "python -m data_pipeline build" in lines[0]
