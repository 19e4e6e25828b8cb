"""Weights out of a run and in again: folders that are whole or absent, open_clip's files, starting a run from weights."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Bpe

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import clip_bpe
from sycoca_ds.data.transforms import eval_image
from sycoca_ds.engine.checkpoint import exported
from sycoca_ds.engine.checkpoint.exported import new_folder
from sycoca_ds.engine.checkpoint.initial_weights import read_weights
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.model.open_clip.config import open_clip_config
from sycoca_ds.model.open_clip.weights import to_open_clip
from sycoca_ds.model.pixels import normalise
from tests.worlds import REPOSITORY
from tests.worlds.open_clip.world import VARIANTS, assert_same_tensors, export_for_open_clip, random_weights, run_export
from tests.worlds.trainings.eval_world import make_data, make_run, make_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SyCoCa run with one sealed checkpoint, step 7."""
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    """That run, exported."""
    out = run.parent / "exported"
    assert run_export("--checkpoint", run, "--out", out) == 0
    return out


def copy_of(folder: Path, new: Path) -> Path:
    new.mkdir()
    for path in folder.iterdir():
        (new / path.name).write_bytes(path.read_bytes())
    return new


# ---- our own folder ------------------------------------------------------------------------------------------------------------


def test_an_exported_run_is_the_run(run: Path, folder: Path, tmp_path: Path) -> None:
    before, after = load_for_inference(run), load_for_inference(folder)
    assert_same_tensors(dict(after.model.state_dict()), dict(before.model.state_dict()))
    assert after.config.model == before.config.model and after.config.data.train == ()
    assert (after.state["step"], after.state["samples"], after.state["digest"]) == (7, 7 * 256, before.digest)
    assert after.tokenizer.encode(["a red circle"], 9).tolist() == before.tokenizer.encode(["a red circle"], 9).tolist()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert not after.model.training and next(after.model.parameters()).dtype == torch.float32
    config, weights = read_weights(folder)
    assert config == before.config.model
    assert_same_tensors(weights, dict(before.model.state_dict()))

    # a step's folder and an exported folder are sources too
    for number, source in enumerate((run / "checkpoints" / "step_00000007", folder)):
        assert run_export("--checkpoint", source, "--out", tmp_path / str(number)) == 0
        again = load_for_inference(tmp_path / str(number))
        assert again.state["step"] == 7 and again.state["kind"] == ("checkpoint", "exported")[number]
        assert_same_tensors(dict(again.model.state_dict()), dict(before.model.state_dict()))


def test_a_dry_run_says_what_would_be_and_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, words = tmp_path / "out", ("--checkpoint", run, "--dtype", "bfloat16", "--to", "open_clip")
    assert run_export(*words, "--out", out, "--dry-run") == 0 and not out.exists()
    would = capsys.readouterr().out
    assert run_export(*words, "--out", out) == 0
    was, size = capsys.readouterr().out, (out / "open_clip_model.safetensors").stat().st_size
    assert (
        would.startswith(f"{out}: would be ")
        and would.split("would be ")[1].split(" M ")[0] == was[len(f"{out}: ") :].split(" M ")[0]
    )
    assert abs(float(would.split(" MB")[0].split()[-1]) - size / 1e6) < 0.1
    with pytest.raises(UserError, match="nothing is overwritten"):
        run_export(*words, "--out", out, "--dry-run")
    for place in (out / "README.md/x", Path("/proc/x")):
        for dry in (("--dry-run",), ()):
            with pytest.raises(UserError, match=f"^{place}: expected a folder, or a place for one"):
                run_export(*words, "--out", place, *dry)


def test_the_moving_average_is_exported_in_place_of_the_weights(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What came out says so, and goes on saying so. Only its own files are read: others may be damaged."""
    averaged, other = make_run(tmp_path / "averaged", average_of=4), make_run(tmp_path / "other", seed=4)
    expected = dict(load_for_inference(other).model.state_dict())
    assert run_export("--checkpoint", averaged, "--ema", "--out", tmp_path / "ema") == 0
    assert "step 7, average of its weights, " in capsys.readouterr().out
    assert run_export("--checkpoint", tmp_path / "ema", "--out", tmp_path / "again") == 0
    for out in (tmp_path / "ema", tmp_path / "again"):
        loaded = load_for_inference(out)
        assert loaded.ema_decay == 0.99 and loaded.state["step"] == 7
        assert_same_tensors(dict(loaded.model.state_dict()), expected)
    live = load_for_inference(averaged)
    assert live.ema_decay is None
    assert_same_tensors(dict(live.model.state_dict()), dict(load_for_inference(run).model.state_dict()))

    weights = averaged / "checkpoints/step_00000007/mp_rank_00_model_states.pt"
    weights.write_bytes(b"damaged")
    assert load_for_inference(averaged, ema=True).state["step"] == 7
    with pytest.raises(UserError, match="is damaged"):
        load_for_inference(averaged)
    piece = averaged / "checkpoints/step_00000007/ema_rank_00001.pt"
    piece.write_bytes(piece.read_bytes()[:-1] + b"x")
    for path in (averaged, piece.parent):
        with pytest.raises(UserError, match="ema_rank_00001.pt is damaged"):
            load_for_inference(path, ema=True)


def test_an_average_that_is_not_there_is_refused_in_one_line(run: Path, folder: Path, tmp_path: Path) -> None:
    for source, reason in (
        (run, "step_00000007 was saved without optim.ema-decay and has no average: leave --ema out"),
        (folder, "is an exported folder, which has one set of weights"),
    ):
        with pytest.raises(UserError, match=reason):
            run_export("--checkpoint", source, "--ema", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="open_clip's weights have no average"):
        run_export("--from-open-clip", "x.bin", "--ema", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_are_as_readable_as_the_files_beside_them(folder: Path) -> None:
    assert len({oct(path.stat().st_mode) for path in folder.iterdir()}) == 1


def test_an_exported_run_evaluates_as_the_run(run: Path, folder: Path, tmp_path: Path) -> None:
    """Also where nobody knows the step, as with open_clip's weights."""
    from sycoca_ds.eval.options import SuiteOptions
    from sycoca_ds.evaluation.command import evaluate_checkpoint

    data = make_data(tmp_path / "data", images=12)
    stepless = copy_of(folder, tmp_path / "stepless")
    record = json.loads((folder / "config.json").read_text())
    record["source"] = {"kind": "open_clip", "path": "x", "step": None, "samples": None, "digest": "0"}
    (stepless / "config.json").write_text(json.dumps(record))
    options, cpu = SuiteOptions(tasks=("retrieval",), batch_size=5), torch.device("cpu")
    results = [
        evaluate_checkpoint(source, data, None, tmp_path / str(number), options, cpu)[0]
        for number, source in enumerate((run, folder, stepless))
    ]
    metrics = [result["tasks"]["retrieval"]["metrics"] for result in results]
    assert metrics[0] == metrics[1] == metrics[2]
    assert [result["checkpoint"]["step"] for result in results] == [7, 7, None]
    assert results[1]["checkpoint"]["digest"] != results[2]["checkpoint"]["digest"] == load_for_inference(stepless).digest


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once_and_the_logit_scale_is_not(dtype: str, run: Path, tmp_path: Path) -> None:
    assert run_export("--checkpoint", run, "--out", tmp_path / "half", "--dtype", dtype) == 0
    before, stored = load_for_inference(run).model.state_dict(), load_file(tmp_path / "half" / "model.safetensors")
    kind = exported.DTYPES[dtype]
    assert_same_tensors(stored, {n: v if n == "logit_scale" else v.to(kind) for n, v in before.items()})
    after = load_for_inference(tmp_path / "half").model.state_dict()
    assert_same_tensors(dict(after), {n: v if n == "logit_scale" else v.to(kind).float() for n, v in before.items()})


def test_weights_that_a_precision_cannot_hold_are_named(run: Path) -> None:
    weights = load_for_inference(run).model.state_dict()
    weights["text_encoder.ln_final.bias"][3] = 1e6
    assert exported.cast(weights, "bfloat16")
    with pytest.raises(UserError, match="text_encoder.ln_final.bias does not fit float16"):
        exported.cast(weights, "float16")
    weights["text_encoder.ln_final.bias"][3] = float("nan")
    with pytest.raises(UserError, match="text_encoder.ln_final.bias is not finite"):
        exported.cast(weights, "float32")


def test_nothing_is_overwritten_and_nothing_half_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    full.mkdir()
    empty.mkdir()
    file.write_text("mine")
    (full / "notes.txt").write_text("mine")
    for out in (full, file):
        with pytest.raises(UserError, match="nothing is overwritten"):
            run_export("--checkpoint", run, "--out", out)
    assert (full / "notes.txt").read_text() == file.read_text() == "mine"

    def torn(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(exported, "copy_tokenizer", torn)  # called when the weights are already written
    with pytest.raises(OSError, match="disk full"):
        run_export("--checkpoint", run, "--out", empty)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"] and not any(empty.iterdir())
    monkeypatch.undo()
    assert run_export("--checkpoint", run, "--out", empty) == 0 and load_for_inference(empty)


def test_damage_is_named_before_anything_is_used(folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("model.safetensors", "tokenizer.json")):
        torn = copy_of(folder, tmp_path / f"torn{number}")
        data = bytearray((torn / name).read_bytes())
        data[-9] ^= 1
        (torn / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            load_for_inference(torn)
        (torn / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            load_for_inference(torn)

    record = json.loads((folder / "config.json").read_text())
    for number, (change, message) in enumerate(
        [
            ({"format": 99}, "config.json: format 99, written by a newer version; this one reads 1"),
            ({"format": None}, "config.json: format None, this version reads 1; it is not what sycoca_ds/export.py writes"),
            ({"weights": None}, "config.json: expected model, source and weights"),
            ({"model": {**record["model"], "colour": 1}}, "config.json: model: unknown key 'colour'"),
            ({"model": {**record["model"], "embed_dim": 64}}, "image_encoder.proj.weight .* instead of"),
        ]
    ):
        changed = copy_of(folder, tmp_path / f"changed{number}")
        (changed / "config.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=message):
            load_for_inference(changed)
    with pytest.raises(UserError, match="no finished checkpoint .* sycoca_ds/export.py"):
        load_for_inference(tmp_path)


def test_a_missing_tokenizer_is_told_where_it_is_needed(tmp_path: Path) -> None:
    config = VARIANTS["cls"]
    export_for_open_clip(config, random_weights(config), tmp_path)
    loaded = load_for_inference(tmp_path / "ours")
    assert loaded.model("image_features", image_BCHW=torch.zeros(1, 3, 24, 24)).shape == (1, 24)
    with pytest.raises(UserError, match="holds no tokenizer.json.*--tokenizer"):
        _ = loaded.tokenizer
    bpe = make_tokenizer(tmp_path / "bpe.json")
    with pytest.raises(UserError, match="bpe.json has [0-9]+ entries .* at most 50"):
        run_export("--checkpoint", tmp_path / "ours", "--tokenizer", bpe, "--out", tmp_path / "new")


# ---- open_clip's files ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_to_open_clips_layout_and_comes_back(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_export("--checkpoint", run, "--out", tmp_path / "theirs", "--layout", "open_clip") == 0
    said = capsys.readouterr().err
    assert "NOTE: the image decoder is left out" in said and "shifted padding mask" in said
    names = ["README.md", "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == names
    # what transformers' AutoTokenizer makes of the two files: special ids around the text by the tokenizer itself
    bpe = Bpe.from_file(str(tmp_path / "theirs" / "tokenizer.json"))
    described = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    ids = bpe.encode("a red circle").ids
    assert ids == load_for_inference(run).tokenizer.encode(["a red circle"], len(ids))[0].tolist() and ids[0] == 1 and ids[-1] == 2
    assert bpe.token_to_id(described["pad_token"]) == 0 and bpe.token_to_id(described["eos_token"]) == 2
    assert run_export("--from-open-clip", tmp_path / "theirs", "--out", tmp_path / "ours") == 0
    before, after = load_for_inference(run), load_for_inference(tmp_path / "ours")
    kept = {name: value for name, value in before.model.state_dict().items() if not name.startswith("image_decoder.")}
    assert_same_tensors(dict(after.model.state_dict()), kept)
    assert after.config.model.text == before.config.model.text and after.config.model.family == "coca"
    assert after.tokenizer.encode(["a red circle"], 9).tolist() == before.tokenizer.encode(["a red circle"], 9).tolist()


def test_files_and_wrappers_of_open_clip_are_read(tmp_path: Path) -> None:
    config = VARIANTS["pooled"]
    weights = random_weights(config)
    state = to_open_clip(weights, config)
    (tmp_path / "model.json").write_text(
        json.dumps({"model_cfg": open_clip_config(config), "sycoca_ds": {"sot_id": 1, "eot_id": 2}})
    )
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.bin")
    wrapped = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": value for name, value in state.items()}, "optimizer": {}}
    torch.save(wrapped, tmp_path / "epoch_3.pt")
    torch.save({**state, "logit_scale": state["logit_scale"].reshape(1)}, tmp_path / "one_scale.pt")
    save_file({f"_orig_mod.{name}": value for name, value in state.items()}, tmp_path / "compiled.safetensors")
    torch.save({"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}}, tmp_path / "both.pt")
    for name in ("plain.safetensors", "plain.bin", "epoch_3.pt", "one_scale.pt", "compiled.safetensors", "both.pt"):
        out = tmp_path / f"out_{name}"
        assert run_export("--from-open-clip", tmp_path / name, "--model", tmp_path / "model.json", "--out", out) == 0
        loaded = load_for_inference(out)
        assert loaded.config.model == config and loaded.state["kind"] == "open_clip" and loaded.state["step"] is None
        assert_same_tensors(dict(loaded.model.state_dict()), weights)


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_of_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    torch.save({"weight": 3}, tmp_path / "number.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "numbered.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "empty.pt").touch()
    for name, message in (
        ("trap.pt", "run code"),
        ("number.pt", "expected tensors by name"),
        ("numbered.pt", "expected tensors by name"),
        ("torn.safetensors", "damaged"),
        ("empty.pt", "damaged"),
    ):
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            run_export("--from-open-clip", tmp_path / name, "--model", "coca_ViT-B-32", "--out", tmp_path / "out")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap itself must work, or this test could not fail"


def test_what_open_clips_folder_says_must_agree(tmp_path: Path) -> None:
    config, folder = VARIANTS["cls"], tmp_path / "theirs"
    folder.mkdir()
    save_file(to_open_clip(random_weights(config), config), folder / "some.safetensors")
    record = {"model_cfg": open_clip_config(config), "sycoca_ds": {"sot_id": 1, "eot_id": 2, "attention_mask": "exact"}}

    def write(**change: object) -> None:
        (folder / "open_clip_config.json").write_text(json.dumps(record | change))

    write()
    source = ("--from-open-clip", folder)
    assert run_export(*source, "--out", tmp_path / "a") == 0
    assert load_for_inference(tmp_path / "a").config.model.text == dataclasses.replace(config.text, attention_mask="exact")
    with pytest.raises(UserError, match="--model coca_ViT-B-32 is not what"):
        run_export(*source, "--model", "coca_ViT-B-32", "--out", tmp_path / "b")
    with pytest.raises(UserError, match="no such preset; did you mean coca_ViT-B-32"):
        run_export(*source, "--model", "coca_ViT-B-33", "--out", tmp_path / "b")
    for change, message in (
        ({"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}, "preprocess_cfg.mean"),
        ({"preprocess_cfg": {"mean": 0.5}}, "preprocess_cfg.mean = 0.5"),
        ({"preprocess_cfg": {"resize_mode": "squash"}}, "preprocess_cfg.resize_mode = squash: .* with shortest there"),
        ({"preprocess_cfg": {"interpolation": "bilinear"}}, "preprocess_cfg.interpolation = bilinear"),
        ({"preprocess_cfg": {"size": [48, 48]}}, r"preprocess_cfg.size = \[48, 48\]: this project prepares all images with 24"),
        ({"preprocess_cfg": [1]}, r"preprocess_cfg = \[1\]: expected an object"),
        ({"sycoca_ds": 3}, "sycoca_ds = 3: expected an object"),
        ({"model_cfg": 3}, "model_cfg = 3: expected an object"),
    ):
        write(**change)
        with pytest.raises(UserError, match=message):
            run_export(*source, "--out", tmp_path / "b")
    write(preprocess_cfg={"size": [24, 24], "mode": "RGB", "resize_mode": "shortest", "fill_color": 0})
    assert run_export(*source, "--out", tmp_path / "c") == 0
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match="say with --model"):
        run_export(*source, "--out", tmp_path / "b")
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors, some.safetensors.*name the file"):
        run_export(*source, "--out", tmp_path / "b")
    with pytest.raises(UserError, match="does not exist"):
        run_export("--from-open-clip", tmp_path / "nowhere", "--out", tmp_path / "b")


def test_normalisation_in_open_clips_json_is_ours(tmp_path: Path) -> None:
    config = VARIANTS["cls"]
    preprocess = json.loads((export_for_open_clip(config, random_weights(config), tmp_path) / "open_clip_config.json").read_text())[
        "preprocess_cfg"
    ]
    grey = np.full((30, 24, 3), 128, np.uint8)
    expected = (128 / 255 - torch.tensor(preprocess["mean"])) / torch.tensor(preprocess["std"])
    torch.testing.assert_close(normalise(eval_image(grey, 24)).mean(dim=(1, 2)), expected)
    assert (preprocess["interpolation"], preprocess["resize_mode"]) == ("bicubic", "shortest")


def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path: Path) -> None:
    left, living = tmp_path / ".out.999999999.tmp", tmp_path / ".out.1.tmp"  # no such process; one that always is
    left.mkdir()
    living.mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.1.tmp", "out"]


# ---- the command ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch", [["-m", "sycoca_ds.export"], pytest.param(["sycoca_ds/export.py"], marks=pytest.mark.full)])
def test_launched_by_path_and_as_a_module_errors_are_one_line(launch: list[str], tmp_path: Path) -> None:
    words = [sys.executable, *launch, "--checkpoint", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no finished checkpoint in") and done.stderr.count("\n") == 1


def test_options_that_contradict_are_refused(run: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    for words, message in (
        (out, "give one of RUN or --checkpoint"),
        (("--checkpoint", run, "--from-open-clip", run, *out), "give one of RUN or --checkpoint"),
        (("--checkpoint", run, "--model", "coca_base", *out), "--model says what open_clip's weights are"),
        (("--checkpoint", run, "--layout", "onnx", *out), "layout"),
    ):
        with pytest.raises(UserError, match=message):
            run_export(*words)


def test_a_file_that_is_not_clips_merges_is_refused(tmp_path: Path) -> None:
    few, wrong = tmp_path / "few.txt", tmp_path / "wrong.txt.gz"
    few.write_text("version\na b\nc d\n")
    wrong.write_bytes(b"no gzip")
    others, torn = tmp_path / "others.txt", tmp_path / "torn.txt.gz"
    others.write_text("version\n" + "a b\n" * 50_000)
    data = bytearray(gzip.compress(random.Random(0).randbytes(5000)))
    data[1000:1100] = bytes(100)
    torn.write_bytes(data)
    for path, message in (
        (few, "are not CLIP's merges"),
        (others, "are not CLIP's merges"),
        (wrong, "cannot be read"),
        (torn, "cannot be read"),
        (tmp_path / "nowhere", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            clip_bpe.read_merges(path)
