"""What a run keeps and says when it goes on: its precision, its vocabulary, its schedule."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint.restoring import changes
from sycoca_ds.engine.ranks.runtime import bf16_speed_up
from sycoca_ds.presets import PRESETS
from tests.worlds.processes.launching import finish, start_warm
from tests.worlds.trainings.training import SMALL


@pytest.fixture(scope="module")
def begun(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """(run of two steps in the precision that `auto` would not choose here, with more rows than the tokenizer has entries; the
    options of its later starts; that precision)."""
    out, other = tmp_path_factory.mktemp("runs") / "begun", "fp32" if bf16_speed_up(0.5) > 1.2 else "bf16"
    cut = SMALL.index("--run.precision")
    small = [*SMALL[:cut], *SMALL[cut + 2 :]]
    words = [*small, "--data.train", str(data_set), "--run.out", str(out), "--run.ds-config", "ds_configs/zero1.json"]
    first = ["--run.precision", other, "--model.text.vocab-size", "320", "--optim.steps", "2"]
    status, output = finish(start_warm([*words, *first], ranks=0))
    assert status == 0, output[-3000:]
    return out, words, other


def test_another_precision_given_by_hand_is_refused_before_anything_is_loaded(begun: tuple[Path, list[str], str]) -> None:
    out, words, precision = begun
    other = {"fp32": "bf16", "bf16": "fp32"}[precision]
    status, output = finish(start_warm([*words, "--run.precision", other], ranks=0))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in output and "M parameters" not in output, output[-3000:]
    assert f"was trained in {precision}, this run has run.precision = {other}" in lines[0]


def other_words(path: Path, copy: Path) -> Path:
    """A tokenizer in which two entries have changed places."""
    file = json.loads(path.read_text())
    entries = file["model"]["vocab"]
    first, second = list(entries)[-2:]
    entries[first], entries[second] = entries[second], entries[first]
    copy.write_text(json.dumps(file))
    return copy


def test_other_ids_of_the_same_number_are_refused(begun: tuple[Path, list[str], str], data_set: Path, tmp_path: Path) -> None:
    out, words, _ = begun
    own = Tokenizer(data_set / "tokenizer.json")
    other = other_words(own.path, tmp_path / "other.json")
    (tmp_path / "same.json").write_text(json.dumps(json.loads(own.path.read_text())))  # other bytes, the same words
    assert own.has_ids_of(tmp_path / "same.json") and not own.has_ids_of(other)
    status, output = finish(start_warm([*words, "--data.tokenizer", str(other)], ranks=0))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "M parameters" not in output, output[-3000:]
    assert f"other ids than those of {other}" in lines[0] and "resume with --data.tokenizer" in lines[0]
    assert (out / "tokenizer.json").read_bytes() == own.path.read_bytes()


def test_going_on_keeps_precision_and_vocabulary_and_says_what_changes(begun: tuple[Path, list[str], str]) -> None:
    out, words, precision = begun
    status, output = finish(start_warm([*words, "--optim.lr", "2e-3"], ranks=0))
    assert status == 0 and "resumed from" in output and "completed at step 4 of 4" in output, output[-3000:]
    config = json.loads((out / "config.json").read_text())
    assert (config["run"]["precision"], config["model"]["text"]["vocab_size"]) == (precision, 320)
    assert (
        "from step 2 on with other settings than the checkpoint's: optim.steps = 4 (was 2), optim.lr = 0.002 (was 0.0014)" in output
    )
    assert "learning rate 2.0e-03 at step 2 (by the checkpoint's settings 1.4e-03), falling to 0 at step 4" in output


def test_what_a_longer_run_says_about_its_learning_rate() -> None:
    """300 steps, then 306: the cosine of 306 is at 1e-3 of its peak where the checkpoint stands."""
    config = dataclasses.replace(
        PRESETS["tiny"], optim=dataclasses.replace(PRESETS["tiny"].optim, lr=1.4e-3, warmup_steps=60, steps=300)
    )
    state = {"step": 300, "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    assert changes(state, config, config.optim, old_steps=300, steps=300) == [
        "the run has 300 steps and the checkpoint is of step 300: there is nothing left to do"
    ]
    longer = dataclasses.replace(config, optim=dataclasses.replace(config.optim, steps=306))
    said = changes(state, longer, config.optim, old_steps=300, steps=306)
    assert said[0] == "from step 300 on with other settings than the checkpoint's: optim.steps = 306 (was 300)"
    assert said[1].startswith("learning rate 2.1e-06 at step 300 (by the checkpoint's settings 0.0e+00), falling to 0 at step 306")
    state["step"] = 100
    assert changes(state, config, config.optim, old_steps=300, steps=300) == []
    bookkeeping = dataclasses.replace(config, run=dataclasses.replace(config.run, log_every=3, out="elsewhere", weights="w"))
    assert changes(state, bookkeeping, config.optim, old_steps=300, steps=300) == [
        "run.weights = w is not read: the run goes on from its checkpoint"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is measured")
def test_the_measured_speed_up_of_bf16_repeats() -> None:
    """Beside whatever else this machine does; means over 0.15 s differed by a factor of two."""
    found = [bf16_speed_up() for _ in range(4)]
    assert max(found) / min(found) < 1.3, found
