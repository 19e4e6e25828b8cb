"""What real ranks are fed: runs whose every sample is written down, over unequal shards, bad samples, epoch ends.

What is fed knows nothing of ZeRO's stage, of which the third takes twice as long: it has the cells of the night."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.engine.checkpoint.seal import sealed
from tests.worlds import REPOSITORY
from tests.worlds.data.data_sets import write_data_set
from tests.worlds.processes.launching import LIMIT, finish, start_warm
from tests.worlds.trainings.training import SMALL

LANES, BATCH, WINDOW = 6, 12, 16
STEPS = 23
RECORDED = """\
import json, os, sys
sys.path[0] = {repository!r}
from sycoca_ds.data.batch import Batch
from sycoca_ds.data.storage import Prefetcher
from sycoca_ds.train import end_process, on_every_rank, run_command
plain, path = Batch.to_device, {folder!r} + "/rank_" + os.environ["RANK"] + ".jsonl"
def recorded(batch, device, size):
    with open(path, "a") as file:
        file.write(json.dumps([os.getpid(), batch.key_B.tolist(), batch.stand_ins]) + "\\n")
    return plain(batch, device, size)
Batch.to_device = recorded
def want(self, files):
    with open({folder!r} + "/wanted_" + os.environ["RANK"] + ".jsonl", "a") as file:
        file.write(json.dumps([remote.url for remote in files]) + "\\n")
    plain_want(self, files)
plain_want, Prefetcher.want = Prefetcher.want, want
end_process(run_command(on_every_rank))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """89 and 40 samples in shards of 1 to 40; two of them cannot be decoded any more."""
    root = tmp_path_factory.mktemp("sources")
    made = [write_data_set(root / "first", [40, 7, 1, 36, 5], seed=1), write_data_set(root / "second", [23, 17], seed=2)]
    for folder, sample in zip(made, (43, 5), strict=True):
        spoil(folder, sample)
    return made


def spoil(folder: Path, first: int, count: int = 1) -> None:
    """Overwrites pictures, counted through the folder, after they were verified."""
    sources = Sources.load([folder])
    places = [(shard, p) for shard, kept in enumerate(sources.kept[0]) for p in range(kept)][first : first + count]
    for shard, position in places:
        row = sources.manifests[0].index(shard, columns=["image_offset", "image_bytes"]).to_pylist()[position]
        with open(sources.name(shard), "r+b") as file:
            file.seek(row["image_offset"])
            file.write(b"\0" * row["image_bytes"])


def options(folders: list[Path], out: Path, stage: str = "zero1") -> list[str]:
    sizes = [f"--data.{name}={value}" for name, value in (("lanes", LANES), ("window", WINDOW), ("workers", 1))]
    sizes += [f"--optim.{name}={value}" for name, value in (("global-batch-size", BATCH), ("steps", STEPS))]
    weights = ["--data.weights", "2", "1"] if len(folders) > 1 else []
    sizes += [f"--run.ds-config=ds_configs/{stage}.json", "--run.checkpoint-every=5"]
    return [*SMALL, "--run.out", str(out), *sizes, "--data.train", *map(str, folders), *weights]


def script_in(folder: Path) -> Path:
    script = folder / "recorded.py"
    script.write_text(RECORDED.format(repository=str(REPOSITORY), folder=str(folder)))
    return script


def fed(folder: Path, rank: int) -> dict[int, list[tuple[list[int], int]]]:
    """By process, what a rank was fed: (keys, stand-ins) of each step."""
    found: dict[int, list] = {}
    for line in (folder / f"rank_{rank}.jsonl").read_text().splitlines():
        process, keys, stand_ins = json.loads(line)
        found.setdefault(process, []).append((keys, stand_ins))
    return found


def planned(folders: list[Path]) -> list[list[int]]:
    """Keys of every global batch, from the plan; `key = epoch * 1_000_000_007 + sample` with seed 0."""
    weights = (2, 1) if len(folders) > 1 else None
    plan = Plan(Sources.load(folders).kept, weights=weights, global_batch_size=BATCH, lanes=LANES, window=WINDOW, seed=0)
    epochs, samples = zip(*(plan.batch(step) for step in range(STEPS)), strict=True)
    assert epochs[-1].max() >= 2, "the run must go through two epoch ends"
    used = np.concatenate(samples)[np.concatenate(epochs) == 0]
    assert len(np.unique(used)) == len(used)
    return [(e * 1_000_000_007 + s).tolist() for e, s in zip(epochs, samples, strict=True)]


@pytest.mark.slow
# two ranks and one folder also stand in the tests of kills and of copies; the full grid adds them with bad samples and no kill
@pytest.mark.parametrize(
    "ranks, count, stage",
    [(3, 2, "zero1"), *(pytest.param(*cell, marks=pytest.mark.full) for cell in ((2, 1, "zero1"), (3, 2, "zero3")))],
)
def test_all_ranks_are_fed_the_plan_and_nothing_else(
    ranks: int, count: int, stage: str, folders: list[Path], tmp_path: Path
) -> None:
    chosen = folders[:count]
    status, output = finish(start_warm(options(chosen, tmp_path / "run", stage), ranks, script=script_in(tmp_path)))
    assert status == 0 and f"completed at step {STEPS}" in output, output[-3000:]
    steps = [next(iter(fed(tmp_path, rank).values())) for rank in range(ranks)]
    assert {len(own) for own in steps} == {STEPS}
    together = [[key for keys, _ in parts for key in keys] for parts in zip(*steps, strict=True)]
    assert together == planned(chosen)
    replaced = sum(stand_ins for own in steps for _, stand_ins in own)
    spoilt = {43: 1, 89 + 5: 1} if count == 2 else {43: 1}
    assert replaced == sum(key % 1_000_000_007 in spoilt for keys in together for key in keys) > 0
    if count == 2:
        assert "mixed: source 2" in output and "33.33% = 4 of every 12 pairs, 40 samples" in output
        records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        records = [record for record in records if "loss" in record]
        assert records[-1]["epoch_of_source_1"] == STEPS / 11 and records[-1]["epoch_of_source_2"] == STEPS / 10


def kill_after(process, seal: Path) -> None:
    """SIGKILL to the whole group as soon as a checkpoint is sealed."""
    deadline = time.monotonic() + LIMIT
    while not seal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert seal.exists(), output[-3000:]


@pytest.mark.full
@pytest.mark.slow
def test_a_run_killed_twice_goes_on_with_other_numbers_of_ranks_where_the_optimizer_was(
    folders: list[Path], tmp_path: Path
) -> None:
    """Two ranks, three, one. Workers had read ahead when the whole group was killed; what counts is the step of the checkpoint:
    the samples of all optimizer steps together are those of the plan, none twice, none left out."""
    script, run, expected = script_in(tmp_path), tmp_path / "run", planned(folders)
    kill_after(start_warm(options(folders, run, "zero3"), 2, script=script), run / "checkpoints/step_00000005/state.json")
    first = sealed(run / "checkpoints")[0]
    third = run / f"checkpoints/step_{int(first.name[5:]) + 5:08d}/state.json"
    kill_after(start_warm(options(folders, run, "zero3"), 3, script=script), third)
    second = sealed(run / "checkpoints")[0]
    status, output = finish(start_warm(options(folders, run, "zero3"), 1, script=script))
    assert status == 0 and f"{second} was saved by 3 ranks: converting it for 1" in output, output[-3000:]
    begins = [0, int(first.name[5:]), int(second.name[5:]), STEPS]
    used: list[list[int]] = []
    for turn, ranks in enumerate((2, 3, 1)):
        # what the processes of this start were fed, rank by rank; a rank that was in the first start has its second one next
        starts = [list(fed(tmp_path, rank).values())[sum(count > rank for count in (2, 3, 1)[:turn])] for rank in range(ranks)]
        counted = begins[turn + 1] - begins[turn]
        together = [[key for keys, _ in parts for key in keys] for parts in zip(*(own[:counted] for own in starts), strict=True)]
        assert len(together) == counted
        used += together
    assert used == expected


@pytest.mark.full
@pytest.mark.slow
def test_ranks_share_copies_of_shards_behind_a_url(tmp_path: Path) -> None:
    """Whole runs through fsspec: with room for all the plan's samples come; with less than is read at once the run is refused."""
    folder, cache = write_data_set(tmp_path / "data", [40, 7, 1, 36, 5], seed=1), tmp_path / "cache"
    url = folder.as_uri()
    words = [url if word == str(folder) else word for word in options([folder], tmp_path / "run")]
    status, output = finish(start_warm([*words, "--data.cache", str(cache)], 2, script=script_in(tmp_path)))
    assert status == 0 and f"completed at step {STEPS}" in output, output[-3000:]
    steps = [next(iter(fed(tmp_path, rank).values())) for rank in range(2)]
    assert [[key for keys, _ in parts for key in keys] for parts in zip(*steps, strict=True)] == planned([folder])
    assert not any(stand_ins for own in steps for _, stand_ins in own)
    shards = list(Sources.load([folder]).manifests[0].shards)
    assert {path.name for path in (cache / "files").iterdir()} == {s.sha256 for s in shards} | {s.index_sha256 for s in shards}
    plan = Plan(Sources.load([folder]).kept, global_batch_size=BATCH, lanes=LANES, window=WINDOW, seed=0)
    for rank in range(2):  # each rank asks ahead for the shards of its own lanes, tar and index
        wanted = [json.loads(line) for line in (tmp_path / f"wanted_{rank}.jsonl").read_text().splitlines()]
        steps_of_window = WINDOW // plan.per_step
        for step, urls in enumerate(wanted):
            ahead = plan.shards_ahead(step, min(steps_of_window, STEPS - step), 2, rank)
            names = [(f"{url}/shards/{n:05d}.tar", f"{url}/manifest/index/{n:05d}.parquet") for n in ahead]
            assert urls == [name for pair in names for name in pair]
        assert len(wanted) == STEPS
    words[words.index(str(tmp_path / "run"))] = str(tmp_path / "refused")
    status, output = finish(start_warm([*words, "--data.cache", str(cache), "--data.cache-gib", "1e-6"], 2))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(lines) == 1 and "data.cache-gib = 1e-06: expected at least" in lines[0], output[-3000:]
    assert not (tmp_path / "refused/run_status.json").exists()


@pytest.mark.slow
def test_data_that_cannot_be_read_stops_all_ranks_together(tmp_path: Path) -> None:
    """Twenty pictures in a row are gone, which one rank meets first: both stop, with the reason, and nothing is saved."""
    folder = write_data_set(tmp_path / "data", [60, 60], seed=4)
    spoil(folder, 60, 20)
    began = time.monotonic()
    status, output = finish(start_warm(options([folder], tmp_path / "run"), 2))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and time.monotonic() - began < 120 and len(lines) == 1, output[-3000:]
    assert "run `python -m data_pipeline verify` on the folder of" in lines[0] and "resumes from the last checkpoint" in lines[0]
    assert json.loads((tmp_path / "run/run_status.json").read_text())["status"] == "failed"


def test_loader_processes_start_before_there_is_a_model(data_set: Path, tmp_path: Path) -> None:
    """They are forks: of a rank with a model, and an optimizer that rewrites it, they would keep all of it as it was."""
    script = tmp_path / "counting.py"
    script.write_text(
        f"import multiprocessing, sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom sycoca_ds.model.sycoca import SyCoCa\n"
        "from sycoca_ds.train import end_process, on_every_rank, run_command\nplain = SyCoCa.__init__\n"
        "def build(self, *given, **more):\n    print('loaders:', len(multiprocessing.active_children()), flush=True)\n"
        "    plain(self, *given, **more)\nSyCoCa.__init__ = build\nend_process(run_command(on_every_rank))\n"
    )
    words = [*SMALL, "--data.train", str(data_set), "--run.out", str(tmp_path / "run"), "--data.workers", "2"]
    words += ["--run.ds-config", "ds_configs/zero0.json"]
    status, output = finish(start_warm(words, ranks=1, script=script))
    assert status == 0 and "loaders: 2\n" in output, output[-3000:]
