"""Weights that the ranks share: every task's numbers are those of a model that each rank holds whole, on two real ranks."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.evaluation import sharding
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.data.named_squares import ENTRIES, draw_squares, squares_tokenizer, write_squares
from tests.worlds.data.nearly_fitting import write_sugarcrepe
from tests.worlds.processes.launching import run_on_ranks
from tests.worlds.trainings.eval_world import SMALL, make_run

if TYPE_CHECKING:
    from sycoca_ds.engine.ranks.runtime import Runtime

PICTURES = 7
"""No multiple of two ranks, or of their batches."""
MODEL = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, vocab_size=ENTRIES))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares with regions, classes and questions, a benchmark, an untrained run of a model and one of a model that answers."""
    folder, squares = tmp_path_factory.mktemp("shared"), draw_squares(PICTURES)
    write_squares(folder, squares)
    classes = sorted({square.colours[0] for square in squares})
    labels = {square.url: classes.index(square.colours[0]) % 3 for square in squares}
    content = {"name": "squares", "classes": classes[:3], "templates": ["a {c} square"], "labels": labels}
    (folder / "labels.json").write_text(json.dumps(content))
    entries = [
        {"url": square.url, "question": "a square", "answer": square.colours[place], "kind": "colour"}
        for square in squares
        for place in range(1 + square.number % 2)
    ]
    (folder / "questions.json").write_text(json.dumps({"name": "squares", "questions": entries}))
    write_sugarcrepe(folder / "sugarcrepe", items=3)
    make_run(folder / "run", MODEL, tokenizer=squares_tokenizer)
    make_run(folder / "answers", dataclasses.replace(MODEL, family="coca", fusion=True), tokenizer=squares_tokenizer)
    broken = shutil.copytree(folder / "data", folder / "broken")
    tar = next((broken / "shards").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    start = [found.start() for found in re.finditer(rb"\x89PNG", bytes(data))][PICTURES - 2]
    data[start : start + 40] = bytes(40)
    tar.write_bytes(data)
    return folder


def on_a_rank(runtime: Runtime, place: str) -> None:
    """Both checkpoints, whole and shared; then a picture that one rank alone cannot read."""
    from sycoca_ds.eval.runner.bench import Resources
    from sycoca_ds.eval.runner.team import Team
    from sycoca_ds.evaluation.command import evaluate_one

    world, cpu = Path(place), torch.device("cpu")
    sharding.SMALL_NUMBERS = 50  # so that weights of this size are shared, too
    made = []
    for name in ("sharded", "fresh_sharded"):
        make = getattr(sharding, name)
        setattr(sharding, name, lambda *given, make=make: made.append(weakref.ref(model := make(*given))) or model)

    def evaluated(out: str, **options) -> bool:
        team = Team(runtime.rank, runtime.world_size)
        given = {"data": "data", "labels": "labels.json", "regions": "test_regions.json", **options.pop("files", {})}
        given = {name: str(world / value) for name, value in given.items()}
        given |= {"out": str(world / out), "device": "cpu", "precision": "fp32", "batch_size": 2, "gallery": 3, "caption_tokens": 4}
        config = EvaluateConfig(**{**given, "probe_train": given["data"], **options})
        from functools import partial

        resources = Resources(team, fresh=partial(sharding.fresh_weights, team))
        assert evaluate_one(config, config.suite_options(cpu), cpu, resources) == 0
        return team.lockstep

    crepe = (f"sugarcrepe={world / 'sugarcrepe'}",)
    for shard in ("no", "yes", "auto"):
        tasks = tuple(task for task in TASKS if task != "vqa") if shard != "auto" else ("retrieval",)
        shared = evaluated(shard, checkpoint=str(world / "run"), tasks=tasks, compositions=crepe, shard_weights=shard)
        assert shared == (shard == "yes"), "so small a model fits"
        if shard != "auto":
            for answering in ("rank", "generate"):
                more = {"checkpoint": str(world / "answers"), "tasks": ("vqa",), "answering": answering, "shard_weights": shard}
                evaluated(f"{shard}_{answering}", files={"questions": "questions.json"}, **more)
    gc.collect()
    assert len(made) == 4 and not [ref for ref in made if ref() is not None], "models that nobody needs are gone"
    try:
        evaluated("broken out", checkpoint=str(world / "run"), tasks=("retrieval",), files={"data": "broken"}, shard_weights="yes")
    except UserError as error:
        assert "rank " in str(error) and "the image cannot be read" in str(error), error
    else:
        raise AssertionError("a broken picture was passed over")


@pytest.mark.timeout(900)
def test_every_number_is_that_of_a_whole_model(world: Path, tmp_path: Path) -> None:
    run_on_ranks(tmp_path / "ranks", __name__, str(world))
    done = set()
    for kind in ("", "_rank", "_generate"):
        whole, shared = (json.loads((world / f"{name}{kind}/results.json").read_text()) for name in ("no", "yes"))
        assert [found["provenance"]["weights_shared"] for found in (whole, shared)] == [False, True]
        assert whole["checkpoint"]["parameters"] == shared["checkpoint"]["parameters"]
        for task, record in whole["tasks"].items():
            assert shared["tasks"][task]["metrics"] == record["metrics"], task
            done |= {task} if record["status"] == "done" else set()
    assert done == set(TASKS) - {"association"}, "WinoGAViL's alone, by the features of retrieval"


def test_one_process_alone_says_that_it_shares_with_nobody(world: Path, tmp_path: Path) -> None:
    from sycoca_ds.evaluation.command import evaluate

    config = EvaluateConfig(str(world / "run"), str(world / "data"), out=str(tmp_path), device="cpu", shard_weights="yes")
    with pytest.raises(UserError, match="--shard-weights yes: one process has nobody to share with"):
        evaluate(config)
    with pytest.raises(UserError, match="--shard-weights maybe: expected auto, yes, no"):
        evaluate(dataclasses.replace(config, shard_weights="maybe"))


def test_where_a_rank_has_no_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from sycoca_ds.engine.ranks import host_memory
    from sycoca_ds.model.sycoca import SyCoCa

    needed = 8 * sum(value.numel() for value in SyCoCa(MODEL, seed=None).state_dict().values())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    for share, expected in ((1.01, True), (0.99, False)):
        free = host_memory.SPARE_MEMORY + int(3 * needed / sharding.SHARE_OF_MEMORY * share)
        monkeypatch.setattr(host_memory, "available", lambda free=free: free)
        assert sharding.fits(MODEL, torch.device("cpu")) == expected
