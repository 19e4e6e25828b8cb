"""Weights that travel: every form of a real run answers as the run, says what it is, and is not kept where it does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Bpe

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_file
from sycoca_ds import export
from sycoca_ds.engine.checkpoint import exported
from sycoca_ds.engine.checkpoint.seal import read_state, write_seal
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.exporting.proof import answers, batch
from tests.worlds import REPOSITORY
from tests.worlds.open_clip.world import assert_same_tensors, run_export
from tests.worlds.trainings.eval_world import make_run
from tests.worlds.trainings.training import in_turn

pytestmark = pytest.mark.slow

READ = ["--model.image.pooling", "cls", "--model.text.pooling", "cls"]
"""What open_clip can hold."""


@pytest.fixture(scope="module")
def trained(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks under ZeRO-3, with an evaluation of its last checkpoint and one of other weights."""
    folder = tmp_path_factory.mktemp("trained")
    run = folder / "tiny run"
    assert in_turn(folder / "turn", data_set, [(run, [*READ, "--run.ds-config", "ds_configs/zero3.json"])], ranks=2) == [""]
    digest = sha256_file(run / "checkpoints/step_00000004/state.json")
    write_results(run / "eval", digest, 41.5)
    write_results(run / "other", "0" * 64, 99.5)
    return run


def write_results(out: Path, digest: str, recall: float) -> None:
    out.mkdir()
    numbers = {"metrics": {"i2t_r1": recall, "t2i_r1": 7.25, "images": 500}, "intervals": {"i2t_r1": [recall - 2, recall + 2]}}
    checkpoint = {"step": 4, "digest": digest, "ema_decay": None}
    results = {"checkpoint": checkpoint, "data": {"folder": "/data/held-out", "images": 500}, "tasks": {"retrieval": numbers}}
    (out / "results.json").write_text(json.dumps(results))


def test_every_form_of_a_zero_3_run_answers_as_the_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    live = load_for_inference(trained)
    given = batch(live.config.model)
    expected = answers(live.model, given, reconstructs=True)
    assert len(expected) == 5
    for form in ("safetensors", "hf-folder"):
        assert run_export(trained, "--to", form, "--out", tmp_path / form) == 0
        assert "rebuilt pixels of 3 fixed pairs, bit for bit those of the model" in capsys.readouterr().out
        loaded = load_for_inference(tmp_path / form)
        assert_same_tensors(answers(loaded.model, given, reconstructs=True), expected)
        text = loaded.tokenizer.encode(["red beside blue"], 12).tolist()
        assert text == live.tokenizer.encode(["red beside blue"], 12).tolist()
    assert run_export(trained, "--to", "open_clip", "--out", tmp_path / "open_clip") == 0
    assert run_export("--from-open-clip", tmp_path / "open_clip", "--out", tmp_path / "back") == 0
    back = load_for_inference(tmp_path / "back")
    of_coca = {name: value for name, value in expected.items() if name != "rebuilt pixels"}
    assert_same_tensors(answers(back.model, given, reconstructs=False), of_coca)


def test_a_hub_folder_has_what_its_users_expect(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    assert run_export(trained, "--to", "hf-folder", "--out", out, "--license", "cc-by-4.0", "--data-license", "see its owners") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    record = json.loads((out / "config.json").read_text())
    assert record["model_type"] == "sycoca" and record["model"]["embed_dim"] == 32
    assert record["tokenizer"]["sha256"] == sha256_file(out / "tokenizer.json")
    assert load_file(out / "model.safetensors").keys() == load_for_inference(trained).model.state_dict().keys()
    ids = Bpe.from_file(str(out / "tokenizer.json")).encode("red beside blue").ids
    assert ids == load_for_inference(trained).tokenizer.encode(["red beside blue"], len(ids))[0].tolist() and ids[-1] == 2

    card = (out / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert 'license: "cc-by-4.0"\n' in front and "library_name: sycoca-ds\n" in front and "  - image-captioning\n" in front
    assert all(re.fullmatch(r"[a-z_]+: ?\S.*|[a-z_]+:|  - \S+", line) for line in front.splitlines()), front
    assert "# tiny run, step 4" in body and "4 steps of 16 pairs, 64 in all" in body and "ZeRO stage 3" in body
    assert re.search(r"\| `train` \| not stated \| 96 \| 96 \| 5 \| ", body), "the manifest's counts"
    assert ": Image to text, R@1 | 41.5 % | 39.5 to 43.5 | `held-out`, 500 pictures |" in body
    assert "99.5" not in body, "an evaluation of other weights"
    assert "Weights: cc-by-4.0." in body and "Pictures and captions: see its owners." in body
    # what is known goes on with the weights
    assert run_export("--checkpoint", out, "--out", tmp_path / "again") == 0
    again = (tmp_path / "again/README.md").read_text()
    assert "41.5 %" in again and "4 steps of 16 pairs" in again and "not stated by whoever exported them" in again


def test_no_file_says_where_things_lay_on_this_machine(trained: Path, tmp_path: Path) -> None:
    forms = ("safetensors", "hf-folder", "open_clip")
    for form in forms:
        assert run_export(trained, "--to", form, "--out", tmp_path / form) == 0
    older = json.loads((tmp_path / "safetensors/config.json").read_text())  # of a version that kept paths
    older["source"]["about"]["data"][0]["folder"] = str(trained / "old/train")
    older["source"]["about"]["results"][0]["data"] = str(trained / "old/test") + "/"
    (tmp_path / "safetensors/config.json").write_text(json.dumps(older))
    assert run_export(tmp_path / "safetensors", "--out", tmp_path / "again") == 0
    for form in (*forms[1:], "again"):
        for path in (tmp_path / form).iterdir():
            assert not re.search(rb"/(data|old|tmp|home)/|" + re.escape(bytes(trained.parent)), path.read_bytes()), path
        name = "open_clip_config.json" if form == "open_clip" else "config.json"
        record = json.loads((tmp_path / form / name).read_text())
        source = record["sycoca_ds"]["source"] if form == "open_clip" else record["source"]
        assert source["path"] == ("safetensors" if form == "again" else "tiny run") and len(source["digest"]) == 64
        (data,), results = source["about"]["data"], source["about"]["results"]
        assert data["folder"] == "train" and len(data["digest"]) == 64
        assert {one["data"] for one in results} == ({"held-out", "test"} if form == "again" else {"held-out"})


def test_a_folder_that_answers_otherwise_is_not_kept(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exported.save_tensors

    def wrong(state, path):
        name = next(name for name in state if name.endswith(("mlp.fc.weight", "mlp.c_fc.weight")))
        return real({**state, name: state[name] + 1e-3}, path)

    monkeypatch.setattr(exported, "save_tensors", wrong)
    for form in ("safetensors", "hf-folder", "open_clip"):
        with pytest.raises(UserError, match=r"what was written answers otherwise than the model \(image vectors differ by"):
            run_export(trained, "--to", form, "--out", tmp_path / form)
    assert not list(tmp_path.iterdir())


def test_rounded_weights_answer_as_they_are_and_say_what_rounding_did(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_export(trained, "--to", "hf-folder", "--dtype", "bfloat16", "--out", tmp_path / "half") == 0
    said = capsys.readouterr().out
    assert re.search(r"with its weights rounded; rounding moves its vectors by up to 0.0\d", said), said


def test_where_it_goes_and_what_contradicts_itself(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export.parse([str(trained), "--to", "open_clip"]).folder == Path("exported/tiny run_open_clip")
    assert export.parse([str(trained / "checkpoints/step_00000002")]).folder == Path("exported/tiny run_step_00000002_safetensors")
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "lr1e-4.seed0/model.b.safetensors"
    for source, name in (
        ("runs/lr1e-4.seed0", "lr1e-4.seed0_safetensors"),
        ("runs/lr1e-4.seed1/", "lr1e-4.seed1_safetensors"),
        ("runs/lr1e-4.seed1/checkpoints/step_00000002", "lr1e-4.seed1_step_00000002_safetensors"),
        ("lr1e-4.seed0/../x.y", "x.y_safetensors"),
        (weights, "model.b_safetensors"),
    ):
        weights.parent.mkdir(exist_ok=True)
        weights.touch()
        assert (
            export.parse(["--from-open-clip" if source is weights else "--checkpoint", str(source)]).folder
            == Path("exported") / name
        )
    for words, said in (
        ((trained, "--checkpoint", trained), "expected one of them"),
        ((trained, "--to", "hf-folder", "--layout", "open_clip"), "--to hf-folder and --layout open_clip: expected one of them"),
        (("--to", "hf-folder"), "give one of RUN or --checkpoint"),
        ((trained, "--from-open-clip", "x"), "give one of RUN or --checkpoint"),
    ):
        with pytest.raises(UserError, match=said):
            run_export(*words)


MEASURE = """
import resource, sys
from sycoca_ds.engine.checkpoint.weights import open_weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_weights(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_optimizer_states_stay_on_disk(tmp_path: Path) -> None:
    """A checkpoint without ZeRO holds them in the file of the weights."""
    run = make_run(tmp_path / "run")
    folder = run / "checkpoints/step_00000007"
    path, state = folder / "mp_rank_00_model_states.pt", read_state(folder)
    size = 300 << 20
    torch.save(torch.load(path, weights_only=False) | {"optimizer": {"exp_avg": torch.ones(size // 4)}}, path)
    state["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_seal(folder, state)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(run)], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < size / 3, "the peak of the process grew by the optimizer's states"
