"""An evaluation over several ranks: every sample once, equal work, the numbers of one rank, and one line when something fails."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sycoca_ds.eval.runner.team import shares
from tests.worlds import REPOSITORY
from tests.worlds.data.nearly_fitting import write_sugarcrepe
from tests.worlds.processes.launching import finish, start, start_warm
from tests.worlds.published.packed import write_cifar10
from tests.worlds.trainings.eval_world import make_data, make_labels, make_run

pytestmark = pytest.mark.slow
SCRIPT = REPOSITORY / "sycoca_ds/evaluate.py"


@pytest.mark.parametrize(("count", "ranks", "batch"), itertools.product((1, 2, 7, 12, 53), (1, 2, 3, 5), (1, 4, 64)))
def test_every_sample_is_asked_and_counted_once_and_every_rank_works_the_same(count: int, ranks: int, batch: int) -> None:
    rows_N = np.arange(count) * 3 + 1
    counted = []
    for round_R, asked_RB in shares(rows_N, ranks, batch):
        assert asked_RB.shape[0] == ranks and 1 <= asked_RB.shape[1] <= batch
        assert asked_RB.shape[1] == -(-len(round_R) // ranks), "no rank has more than its share"
        flat = asked_RB.reshape(-1)
        assert (flat[: len(round_R)] == round_R).all() and (flat[len(round_R) :] == round_R[-1]).all()
        counted += round_R.tolist()
    assert counted == rows_N.tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_data(folder / "data", images=23, captions=2)
    make_labels(folder / "labels.json", 23)
    make_run(folder / "run")
    write_sugarcrepe(folder / "sugarcrepe", items=5)
    return folder


def words(folder: Path, out: str, *more: str) -> list[str]:
    given = {"checkpoint": "run", "data": "data", "labels": "labels.json", "out": out}
    words = [word for name, value in given.items() for word in (f"--{name}", str(folder / value))]
    return [*words, "--device", "cpu", "--precision", "fp32", "--caption-tokens", "6", "--gallery", "2", *more]


def results(folder: Path, out: str) -> dict:
    found = json.loads((folder / out / "results.json").read_text())
    return {task: (record["status"], record["metrics"], record["null_reasons"]) for task, record in found["tasks"].items()}


def differences(first: dict, second: dict) -> list[str]:
    assert {task: (status, reasons) for task, (status, _, reasons) in first.items()} == {
        task: (status, reasons) for task, (status, _, reasons) in second.items()
    }
    return [
        f"{task}.{name}: {value} and {second[task][1][name]}"
        for task, (_, numbers, _) in first.items()
        for name, value in numbers.items()
        if value != second[task][1][name] and value != pytest.approx(second[task][1][name], rel=1e-4, abs=1e-3)
    ]


def test_numbers_of_one_two_and_three_ranks_are_equal(folder: Path) -> None:
    """Every task, pictures that divide by none of them, batches of another size, and a resumption by another number of ranks."""
    crepe = ["--compositions", f"sugarcrepe={folder / 'sugarcrepe'}"]
    status, said = finish(start_warm(words(folder, "one", "--batch-size", "5", *crepe), ranks=0, script=SCRIPT))
    assert status == 0, said
    one = results(folder, "one")
    assert [task for task, (status, _, _) in one.items() if status != "done"] == ["linear_probe", "vqa"]
    for ranks, batch in ((2, "4"), (3, "7")):
        out = f"{ranks} ranks"
        status, said = finish(start_warm(words(folder, out, "--batch-size", batch, *crepe), ranks=ranks, script=SCRIPT))
        assert status == 0 and said.count("report: ") == 1, said
        assert json.loads((folder / out / "results.json").read_text())["provenance"]["world_size"] == ranks
        assert differences(one, results(folder, out)) == []
        captions = [json.loads((folder / name / "samples/captions.json").read_text()) for name in ("one", out)]
        assert captions[0] == captions[1]
    for part in sorted((folder / "3 ranks/cache").glob("*/*.part"))[::2]:
        part.unlink()
    shutil.rmtree(folder / "3 ranks/tasks")
    status, said = finish(start_warm(words(folder, "3 ranks", "--batch-size", "2", *crepe), ranks=2, script=SCRIPT))
    assert status == 0 and differences(one, results(folder, "3 ranks")) == [], said


def test_through_deepspeed_and_torchrun(folder: Path) -> None:
    tasks = ("--tasks", "retrieval", "--batch-size", "4")
    status, said = finish(start(words(folder, "deepspeed", *tasks), ranks=2, script=SCRIPT))
    assert status == 0 and "numbers: " in said, said
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, *words(folder, "torchrun", *tasks)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert results(folder, "deepspeed")["retrieval"] == results(folder, "torchrun")["retrieval"]


def complaints(said: str) -> list[str]:
    return [line for line in said.splitlines() if re.search(r"error|Traceback|rank \d", line)]


def test_an_error_on_one_rank_ends_all_with_one_line(folder: Path) -> None:
    """A picture that rank 1 alone is asked to read."""
    broken = shutil.copytree(folder / "data", folder / "broken")
    tar = next((broken / "shards").glob("00000.tar"))
    data = bytearray(tar.read_bytes())
    start_of_jpeg = [found.start() for found in re.finditer(rb"\xff\xd8\xff", bytes(data))][8 * 2]  # two captions a picture
    data[start_of_jpeg : start_of_jpeg + 40] = bytes(40)
    tar.write_bytes(data)
    given = words(folder, "broken out", "--tasks", "retrieval", "--batch-size", "6")
    given[given.index(str(folder / "data"))] = str(broken)
    status, said = finish(start_warm(given, ranks=2, script=SCRIPT))
    assert status == 2 and len(complaints(said)) == 1, said
    assert complaints(said)[0].startswith("error: rank 1 on ") and "the image cannot be read" in complaints(said)[0]
    assert not (folder / "broken out/results.json").exists()


def test_an_error_of_all_ranks_is_said_once(folder: Path) -> None:
    for wrong, expected in ((["--tasks", "retrival"], "no such task"), (["--checkpoint", str(folder)], "no finished checkpoint")):
        status, said = finish(start_warm(words(folder, "wrong", *wrong), ranks=2, script=SCRIPT))
        assert status == 2 and len(complaints(said)) == 1 and expected in said, said


def test_sets_one_of_which_cannot_be_read(folder: Path) -> None:
    """The next one is evaluated, with the numbers of one rank."""
    root = folder / "sets"
    root.mkdir()
    write_cifar10(root)
    (root / "stl10").mkdir()
    for name in ("test_X.bin", "test_y.bin", "class_names.txt"):
        (root / "stl10" / name).write_bytes(b"broken")
    records = []
    for ranks in (0, 2):
        given = words(
            folder, f"sets {ranks}", "--batch-size", "4", "--data-root", str(root), "--sets", "stl10", "mscoco", "cifar10"
        )
        del given[given.index("--data") : given.index("--data") + 4]  # with the labels
        status, said = finish(start_warm(given, ranks=ranks, script=SCRIPT))
        assert status == 1 and said.count("stl10: no numbers") == 1, said
        records.append(json.loads((folder / f"sets {ranks}/sets.json").read_text())["sets"])
    assert [record["status"] for record in records[0].values()] == ["failed", "not here", "done"]
    for one, two in zip(*(found.values() for found in records), strict=True):
        assert (one["status"], one["metrics"], one.get("reason")) == (two["status"], two["metrics"], two.get("reason"))
