"""The command: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.capacity.command import plan
from sycoca_ds.capacity.machines import Assumptions
from sycoca_ds.engine.batches import plan_batches
from sycoca_ds.engine.policy import check_precision, read_policy
from sycoca_ds.engine.recompute import read_recompute
from sycoca_ds.launch.check import CheckCommand
from sycoca_ds.options import parse_options
from tests.worlds import REPOSITORY

HOSTS = str(REPOSITORY / "hostfiles" / "a100x16")


def test_the_fastest_is_written_as_files_that_training_takes(tmp_path: Path) -> None:
    """The policy goes through `read_policy`, the words of train.sh through train.py's own parser and arithmetic."""
    out = tmp_path / "plan"
    lines = plan(["--preset", "930m", "--hostfile", HOSTS, "--samples", "2.1e9", "--out", str(out), "--data.train", "/data/cc12m"])
    words = shlex.split((out / "train.sh").read_text().splitlines()[1])
    assert words[:5] == ["exec", "deepspeed", "--hostfile", HOSTS, "sycoca_ds/train.py"] and words[-1] == "$@"
    config = parse_options(words[5:-1])
    policy = read_policy(config.run.ds_config)
    check_precision(policy, config)
    batches, numbers = plan_batches(config, 16), json.loads((out / "plan.json").read_text())
    assert config.run.ds_config == str(out / "ds_config.json") and config.data.train == ("/data/cc12m",)
    assert batches.micro_batch_size == numbers["fastest"]["micro_batch_size"]
    assert (
        numbers["fastest"]["memory"]["fits"] and numbers["fastest"]["samples_per_second"] >= numbers["asked"]["samples_per_second"]
    )
    assert config.run.activation_checkpointing == numbers["fastest"]["activation_checkpointing"]
    read_recompute(config.run.activation_checkpointing)
    assert f"written: {out / 'train.sh'}" in lines


def test_what_it_says(capsys: pytest.CaptureFixture) -> None:
    words = ["--preset", "base", "--gpus", "8", "--gpu", "h100-80g", "--samples", "1e8", "--price", "2", "--sweep", "--assumptions"]
    said = "\n".join(plan(words))
    for stage in ("zero0", "zero1", "zero2", "zero3", "zero3_offload"):
        assert said.count(f"\n{stage} ") >= 2  # with and without checkpointing
    for words in (
        "largest micro-batch",
        "days for 1e+08 samples",
        "energy, kWh",
        "save every",
        "MFU",
        "deepspeed --num_accelerators 8",
    ):
        assert words in said
    assert all(f"--{name.replace('_', '-')} " in said for name in Assumptions.__dataclass_fields__)
    assert "\n1024  " in said


def test_the_launch_on_several_machines_has_a_hostfile() -> None:
    """`--num_accelerators 16` would start 16 ranks on this one."""
    (command,) = [line for line in plan(["--preset", "base", "--gpus", "16"]) if line.startswith("to train the fastest: ")]
    assert "deepspeed --hostfile HOSTFILE sycoca_ds/train.py" in command and "--run.expected-world-size 16" in command


def test_failures_that_leave_no_time_make_a_run_endless() -> None:
    lines = plan(["--preset", "tiny", "--gpus", "1", "--samples", "1e9", "--restart-minutes", "1e9"])
    (days,) = [line.split() for line in lines if line.startswith("days for")]
    assert days[-1] == "inf"


def test_a_moving_average_of_the_weights_is_counted(tmp_path: Path) -> None:
    """930M on 16 ranks: a sixteenth of 4 bytes a weight in memory, all of them in the checkpoint."""
    found = []
    for more in ([], ["--optim.ema-decay", "0.9999"]):
        out = tmp_path / f"plan{len(more)}"
        lines = plan(["--preset", "930m", "--hostfile", HOSTS, "--out", str(out), *more])
        assert any("AdamW, EMA" in line for line in lines) == bool(more)
        found.append(json.loads((out / "plan.json").read_text())["asked"])
    without, with_it = found
    weights = with_it["saves"]["bytes"] - without["saves"]["bytes"]
    assert weights == pytest.approx(4 * 938.0e6, rel=1e-4)
    assert with_it["memory"]["optimizer"] - without["memory"]["optimizer"] == pytest.approx(weights / 16, rel=1e-4)
    assert with_it["step_seconds"]["optimizer"] > without["step_seconds"]["optimizer"]
    with pytest.raises(UserError, match="^optim.ema-decay = 1.5: expected"):
        plan(["--preset", "930m", "--hostfile", HOSTS, "--optim.ema-decay", "1.5"])


@pytest.mark.slow
def test_the_example_of_the_page_is_what_the_command_prints() -> None:
    page = (REPOSITORY / "docs/planning.md").read_text()
    command, *shown = page.partition("$ python -m sycoca_ds.capacity ")[2].partition("```")[0].strip().splitlines()
    words = [str(REPOSITORY / word) if word.startswith("hostfiles/") else word for word in shlex.split(command)]
    printed = [line.rstrip().replace(f"{REPOSITORY}/", "") for line in plan(words)]
    assert shown[0].startswith("model: ") and shown[-1].startswith("energy, kWh")
    assert printed[: len(shown)] == shown


def test_every_assumption_is_an_option_that_changes_the_plan() -> None:
    """But the price, which without --samples has nothing to multiply. Disks matter where memory is short."""
    usual = ["--preset", "930m", "--run.ds-config", "ds_configs/zero3.json", "--hostfile", HOSTS]
    usual += ["--run.activation-checkpointing", "full", "--samples", "1e9", "--price", "1"]
    short = ["--host-gib", "0.5"]
    before = plan(usual), plan([*usual, *short])
    changes = {
        "efficiency": "0.3",
        "block-ms": "9",
        "zero3-block-ms": "9",
        "recompute-block-ms": "9",
        "hidden": "0.1",
        "link-share": "0.1",
        "launch-us": "5000",
        "framework-gib": "5",
        "reserve": "0.2",
        "caption-tokens": "18",
        "loader-pictures": "3",
        "sample-kb": "100",
        "save-gbytes": "0.1",
        "write-gbytes": "0.001",
        "host-gib": "0.5",
        "save-seconds": "40",
        "node-mttf-days": "10",
        "restart-minutes": "90",
        "load": "0.5",
        "pue": "1.5",
        "price": "3",
    }
    assert {name.replace("-", "_") for name in changes} == set(Assumptions.__dataclass_fields__)
    for name, value in changes.items():
        beside = short if name == "write-gbytes" else []
        after = plan([*usual[:-2], *beside, *(["--price", "1"] if name != "price" else []), f"--{name}", value])
        assert [line for line in after if line not in before[bool(beside)]], name


def test_a_save_that_finds_no_room_for_its_copy_waits_for_the_disk(tmp_path: Path) -> None:
    """930M in one process on a CPU: 11.256 GB of states beside what the step needs, and one GiB to spare."""

    def saves(*words: str) -> tuple[dict[str, Any], list[str]]:
        lines = plan(["--preset", "930m", "--out", str(tmp_path / "plan"), "--write-gbytes", "0.25", "--save-gbytes", "1", *words])
        rows = [line for line in lines if "stops the training" in line or "kept in a machine's" in line]
        return json.loads((tmp_path / "plan/plan.json").read_text())["asked"], rows

    alone = ["--gpus", "1", "--gpu", "cpu", "--optim.global-batch-size", "2", "--data.lanes", "2"]
    need = saves(*alone, "--memory-gib", "400")[0]["memory"]["sum"]
    for room, copied in ((11.26e9 + 2**30, True), (11.25e9 + 2**30, False)):
        found, rows = saves(*alone, "--memory-gib", str((need + room) / 2**30))
        assert found["saves"]["copied"] == copied and found["saves"]["copy"] == pytest.approx(11.256e9, rel=1e-4)
        assert found["saves"]["seconds"] == pytest.approx(11.256 / (1 if copied else 0.25), rel=1e-3)
        assert f"{found['saves']['seconds']:.1f}" in rows[0] and ("11.26" if copied else "none, 11.26 do not fit") in rows[1]
    offloaded = ["--hostfile", HOSTS, "--run.ds-config", "ds_configs/zero3_offload.json"]
    host = saves(*offloaded)[0]["memory"]["host"]
    for room, copied in ((5.8e9 + 2**30, True), (5.5e9 + 2**30, False)):
        found, _ = saves(*offloaded, "--host-gib", str((8 * host + room) / 2**30))
        assert found["saves"]["copied"] == copied
        assert found["saves"]["seconds"] == pytest.approx(11.3 / 16 / (1 if copied else 0.25), rel=1e-2)


def test_what_a_checkpoint_of_930m_takes_is_what_pages_and_helps_say(tmp_path: Path) -> None:
    """On 16 GPUs: 12 bytes for each of 937,975,373 weights, which ZeRO-3 writes with its small ones and ZeRO-1 and 2 with all
    of them as they compute."""
    sizes = {}
    for stage in ("zero1", "zero2", "zero3"):
        plan(["--hostfile", HOSTS, "--run.ds-config", f"ds_configs/{stage}.json", "--out", str(tmp_path)])
        sizes[stage] = json.loads((tmp_path / "plan.json").read_text())["asked"]["saves"]["bytes"]
    assert sizes["zero1"] == sizes["zero2"] == pytest.approx(14 * 937_975_373, rel=1e-4)
    assert sizes["zero3"] == pytest.approx(12 * 937_975_373, rel=0.005)
    for page in ("docs/engine.md", "sycoca_ds/launch/check.py"):
        said = (REPOSITORY / page).read_text()
        assert all(f"{size / 1e9:.1f} GB" in said for size in sizes.values()) and " 13 GB" not in said, page
    assert 4 * max(sizes.values()) < CheckCommand.disk_gib * 2**30


@pytest.mark.parametrize(
    "words, said",
    [
        (["--gpus", "8", "--gpu", "a100"], r"--gpu a100: no such kind; did you mean a100-[48]0g\? \(expected cpu or one of"),
        ([], "give either --hostfile FILE or --gpus N"),
        (["--gpus", "8", "--hostfile", HOSTS], "give either --hostfile FILE or --gpus N"),
        (["--gpus", "12"], "--gpus 12: expected a multiple of --gpus-per-node 8"),
        (["--hostfile", "no/such/file"], "--hostfile no/such/file does not exist: mend the path"),
        (["--gpus", "16", "--optim.accumulation-steps", "3"], "does not divide over 16 ranks x optim.accumulation-steps = 3"),
        (["--gpus", "512"], r"data.lanes = 256: expected a multiple of the world size \(512\).*choose among 512"),
        (["--gpus", "8", "--run.ds-config", "no.json"], "run.ds-config = no.json: no such file"),
        (["--gpus", "8", "--run.ds-config", "ds_configs/zero0.json", "--run.precision", "bf16"], "choose stage 1"),
        (["--gpus", "8", "--efficiency", "1.4"], "--efficiency 1.4: expected a share above 0, at most 1"),
        (["--gpus", "8", "--samples", "nan"], "--samples nan: expected a number of at least 0"),
        *[
            (["--gpus", "16", f"--{name}", "0"], f"--{name} 0.0: expected a number above 0")
            for name in ("tflops", "memory-gbytes", "link-gbytes", "fabric-gbps", "loader-pictures", "save-gbytes", "write-gbytes")
        ],
        (["--gpus", "16", "--node-mttf-days", "0"], "--node-mttf-days 0.0: expected a number above 0"),
        (["--gpus", "8", "--fabric-gpbs", "400"], r"unknown option --fabric-gpbs; did you mean --fabric-gbps\?"),
        (["--gpus", "8", "--preset", "930"], "--preset 930: no such preset; did you mean 930m"),
        (["--gpus", "8", "--model.image.patch-size", "15"], "model.image.patch-size = 15 does not divide"),
    ],
)
def test_refusals(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(words)


@pytest.mark.parametrize(
    "key, value", [("offload_param", {"device": "cpu"}), ("zero_hpz_partition_size", 8), ("zero_quantized_weights", True)]
)
def test_a_policy_that_is_not_modelled_is_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    policy = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text())
    policy["zero_optimization"][key] = value
    (tmp_path / "own.json").write_text(json.dumps(policy))
    with pytest.raises(UserError, match=rf"own.json: zero_optimization.{key} is not modelled"):
        plan(["--gpus", "8", "--run.ds-config", str(tmp_path / "own.json")])


@pytest.mark.parametrize(
    "text, said",
    [
        ("a slots=8\nb slots=8\na slots=8\n", r"hosts:3: 'a slots=8': a stands there twice"),
        ("a slots=8\nb\n", r"hosts:2: 'b': expected `NAME slots=NUMBER`"),
        ("# nobody\n\n", "names no host"),
        ("a slots=8\nb slots=4\n", r"machines of \[4, 8\] slots; a plan needs equal ones"),
    ],
)
def test_hostfiles_that_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=said):
        plan(["--hostfile", str(tmp_path / "hosts")])


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys\nfrom sycoca_ds.capacity.command import plan\nplan(['--gpus', '16'])\n"
        "assert not {'torch', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_user_s_error_is_one_line_and_status_2() -> None:
    words = [sys.executable, "-m", "sycoca_ds.capacity", "--gpus", "8", "--gpu", "tpu"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: --gpu tpu: no such kind") and done.stderr.count("\n") == 1


def test_the_answer_comes_last_and_assumptions_are_asked_for() -> None:
    words = ["--preset", "tiny", "--gpus", "1", "--gpus-per-node", "1"]
    plain, asked = plan(words), plan([*words, "--assumptions"])
    title = "taken for granted (--help says why; each is an option)"
    assert title not in plain and plain[-1].startswith("to train the fastest: ") and asked[-1].startswith("to train the fastest: ")
    assert asked.index(title) < asked.index("what is asked for, and the fastest that fits")
