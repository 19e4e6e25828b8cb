"""The float32 weights of real checkpoints of every ZeRO stage: the engine's own, read without the optimizer's state beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sycoca_ds.engine.checkpoint import master_files, seal, tensor_files
from sycoca_ds.engine.checkpoint.contents import Contents, put
from sycoca_ds.engine.checkpoint.tensor_files import Damaged
from sycoca_ds.engine.master_weights import NOTHING, Share
from sycoca_ds.engine.policy import build_engine, build_optimizer, read_policy
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.presets import TINY
from tests.worlds import REPOSITORY
from tests.worlds.models.small_model import random_inputs, small_model
from tests.worlds.processes.launching import run_on_ranks

BLOCK = 20_000
"""Bytes with a hash of their own: of these files some dozen, and no weight begins where one does."""
KINDS = ("zero0", "zero1", "zero1_bf16", "zero2_bf16", "zero3_bf16", "zero3_offload")


def on_a_rank(runtime: Runtime, folder: str) -> None:
    """Two steps of each kind on ranks of other data; then what they would save, and every weight as the engine has it."""
    from deepspeed.utils import safe_get_full_fp32_param

    torch.set_num_threads(1)
    seal.BLOCK = BLOCK
    for kind in KINDS:
        name, model = kind.removesuffix("_bf16"), small_model().train()
        policy = read_policy(f"ds_configs/{name}.json")
        policy |= {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, "bf16": {"enabled": kind != name}}
        if "sub_group_size" not in policy["zero_optimization"] and "zero3" in kind:
            policy["zero_optimization"] |= {"sub_group_size": 20_000}  # several groups
        stage = policy["zero_optimization"]["stage"]
        engine = build_engine(model, build_optimizer(model, TINY.optim, "offload" in kind, stage), policy)
        for step in range(2):
            engine.backward(engine("train", **random_inputs(seed=2 * step + runtime.rank))["loss"])
            engine.step()
        out, files = Path(folder, kind), {}
        out.mkdir(exist_ok=True)
        for file, content in Contents(engine).files.items():
            with open(out / file, "wb") as target:
                put(content, target)
            files[file] = seal.digests(out / file)
        live = {n: (p if stage == 0 else safe_get_full_fp32_param(p)).detach().clone() for n, p in model.named_parameters()}
        files = {file: facts for own in runtime.gather(files) for file, facts in own.items()}
        if runtime.leads:
            torch.save(live, out / "live")
            (out / "sealed.json").write_text(json.dumps({"zero_stage": stage, "files": files}))
        engine.destroy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run_on_ranks(folder, __name__, str(folder))
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (seal, tensor_files):
        monkeypatch.setattr(module, "BLOCK", BLOCK)


def bytes_read() -> int:
    """By this process's calls so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_engines_and_moments_are_not_read(kind: str, saved: Path) -> None:
    folder, state = saved / kind, json.loads((saved / kind / "sealed.json").read_text())
    live, before = torch.load(folder / "live"), bytes_read()
    found = master_files.read(folder, state)
    read = bytes_read() - before
    assert found.keys() == live.keys() and all(torch.equal(found[name], live[name]) for name in live)
    assert all(value.dtype == torch.float32 for value in found.values())
    needed = sum(4 * value.numel() for value in found.values())
    there = sum(facts["bytes"] for facts in state["files"].values())
    assert there > 3 * needed, "the moments are in these files"
    assert needed < read < 1.6 * needed + 12 * BLOCK, (needed, read, there)  # names, shapes, and blocks that begin before a weight


@pytest.mark.slow
def test_weights_are_read_without_deepspeed_and_without_a_word(saved: Path) -> None:
    """Importing it writes to stdout, where the answers of `caption --json` are."""
    code = (
        "import json, sys, torch\nfrom pathlib import Path\nfrom sycoca_ds.engine.checkpoint import master_files, tensor_files\n"
        f"tensor_files.BLOCK = {BLOCK}\n"
        "for folder in map(Path, sys.argv[1:]):\n"
        "    live, state = torch.load(folder / 'live'), json.loads((folder / 'sealed.json').read_text())\n"
        "    found = master_files.read(folder, state)\n"
        "    assert found.keys() == live.keys() and all(torch.equal(found[name], live[name]) for name in live), folder\n"
        "assert 'deepspeed' not in sys.modules"
    )
    words = [sys.executable, "-c", code, *(str(saved / kind) for kind in KINDS)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [1, 3, 5])
def test_a_share_is_a_piece_of_the_whole_and_reads_no_more(kind: str, shares: int, saved: Path) -> None:
    """Of any number of ranks, whatever number has saved it."""
    folder, state = saved / kind, json.loads((saved / kind / "sealed.json").read_text())
    whole, start = master_files.read(folder, state), bytes_read()
    found = [master_files.read(folder, state, Share(number, shares)) for number in range(shares)]
    for name, value in whole.items():
        pieces = [part[name].flatten() for part in found]
        assert torch.equal(torch.cat(pieces), value.flatten()) and len(pieces[0]) == -(-value.numel() // shares)
    needed = sum(4 * value.numel() for value in whole.values())
    # blocks that hold the end of one share and the beginning of the next are read for both, and so is what lies where
    assert bytes_read() - start < 3 * needed + shares * 40 * BLOCK
    assert all(not len(value) for value in master_files.read(folder, state, NOTHING).values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero1_bf16", "zero3_bf16"])
def test_damage_is_found_where_it_is_read_and_only_there(kind: str, saved: Path) -> None:
    folder, state = saved / kind, json.loads((saved / kind / "sealed.json").read_text())
    name = next(name for name in state["files"] if "optim_states" in name and "rank_1" in name)
    whole, found = (folder / name).read_bytes(), {}
    for place in range(BLOCK // 2, len(whole), BLOCK):
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found[place] = torch.equal(master_files.read(folder, state)["logit_scale"], torch.load(folder / "live")["logit_scale"])
        except Damaged as error:
            assert f"{folder / name} is damaged" in str(error)
            found[place] = None
    (folder / name).write_bytes(whole)
    noticed = sum(value is None for value in found.values())
    assert 0.25 * len(found) < noticed < 0.75 * len(found), "a third of the file is weights, its ends say what is where"
    assert False not in found.values()
