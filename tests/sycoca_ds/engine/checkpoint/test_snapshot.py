"""What reaches the disk is what was to be saved, however large, by a copy in memory or straight from the weights."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from sycoca_ds.engine.checkpoint import snapshot
from sycoca_ds.engine.checkpoint.contents import Files, Measure, measure
from sycoca_ds.engine.checkpoint.saving import Writing
from sycoca_ds.engine.checkpoint.seal import damage, read_state, step_folder
from sycoca_ds.engine.checkpoint.snapshot import InMemory, Straight, WholeFile, choose_way
from sycoca_ds.engine.checkpoint.writer import Job
from sycoca_ds.engine.ranks.runtime import Runtime
from tests.worlds import REPOSITORY
from tests.worlds.machines.control_group import small_group
from tests.worlds.processes.launching import finish, start_warm

GB = 10**9
WAYS = (InMemory, Straight)


def some_files() -> Files:
    flat = torch.randn(200_003, generator=torch.Generator().manual_seed(3))
    weights = {"view": flat[7:100], "other view": flat[50:].view(-1, 1), "bf16": flat[:9].bfloat16(), "none": torch.empty(0)}
    more = {"step": torch.tensor(4.0), "words": ["a", "b"], "number": 5}
    return {"model.pt": weights, "raw": b"x" * 3_000_001, "empty": b"", "in/folder.pt": more}


def hand_over(way: InMemory | Straight, files: Files, checkpoints: Path, step: int) -> Writing:
    folder = step_folder(checkpoints, step)
    folder.mkdir(parents=True)
    job = Job(str(folder), list(files), [measure(content).size for content in files.values()], 0, 1, {"step": step})
    return way.hand_over(files, lambda handles: Writing(job, handles, step))


def test_both_ways_write_the_same_bytes(tmp_path: Path) -> None:
    """Those that `torch.save` makes in memory, its checksums aside; and again into the memory of a larger save before."""
    files, found = some_files(), {}
    for way in WAYS:
        saver = way()
        hand_over(saver, {**files, "raw": b"y" * 5_000_000}, tmp_path / way.__name__, 3).result()
        assert hand_over(saver, files, tmp_path / way.__name__, 4).result()["error"] == ""
        folder = step_folder(tmp_path / way.__name__, 4)
        assert damage(folder) is None
        found[way] = read_state(folder)["files"], {name: (folder / name).read_bytes() for name in files}
    assert found[InMemory] == found[Straight]
    seal, data = found[Straight]
    torch.serialization.set_crc32_options(False)
    try:
        for name, content in files.items():
            expected = io.BytesIO()
            expected.write(content) if isinstance(content, bytes) else torch.save(content, expected)
            assert data[name] == expected.getvalue() and seal[name]["bytes"] == len(data[name])
    finally:
        torch.serialization.set_crc32_options(True)
    loaded = torch.load(io.BytesIO(data["model.pt"]))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in files["model.pt"].items())


def test_a_file_s_size_is_known_without_a_look_at_its_numbers(tmp_path: Path) -> None:
    """That would take an hour: a TiB."""
    tensor = torch.from_file(str(tmp_path / "hole"), shared=True, size=1 << 40, dtype=torch.uint8)
    found = measure({"large": tensor, "small": torch.zeros(10)})
    assert found.largest == 1 << 40 and 0 < found.size - (1 << 40) < 5000


@pytest.mark.parametrize("way", WAYS)
def test_a_writer_that_ends_early_says_why_and_the_rank_goes_on(way: type, tmp_path: Path) -> None:
    folder = step_folder(tmp_path, 4)
    folder.mkdir()
    (folder / "raw").symlink_to("/dev/full")
    files, sizes = some_files(), [measure(content).size for content in some_files().values()]
    job = Job(str(folder), list(files), sizes, 0, 1, {"step": 4})
    writing = way().hand_over(files, lambda handles: Writing(job, handles, 4))
    assert "No space left" in writing.result()["error"]

    def killed(handles: Iterable[int]) -> Writing:
        folder.mkdir()
        started = Writing(job, handles, 4)
        started._process.kill()
        return started

    assert "ended with status -9" in way().hand_over(files, killed).result()["error"]


class Job16(Runtime):
    """A job in which every rank says what it was given beforehand."""

    said: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return list(self.said)


@pytest.mark.parametrize(
    "hosts, said, line",
    [
        ("a", [(11.3, 12.4)], ""),
        ("a", [(11.3, 12.3)], "11.3 GB do not fit beside the run (12.3 GB free)"),
        ("a", [(11.3, 9.1)], "11.3 GB do not fit beside the run (9.1 GB free)"),
        ("aa", [(4, 9.2), (4, 9.3)], ""),
        ("aa", [(4, 9.0), (4, 9.3)], "8.0 GB do not fit beside the run (9.0 GB free)"),
        ("aabb", [(4, 9.2), (4, 9.2), (3, 9.2), (3, 9.2)], ""),
        ("aabb", [(4, 20), (4, 20), (3, 9.2), (3, 6.4)], "6.0 GB do not fit beside the run on b (6.4 GB free)"),
        ("abab", [(4, 2), (3, 1), (4, 3), (3, 1)], "8.0 GB do not fit beside the run on a (2.0 GB free)"),
    ],
)
def test_all_copies_of_a_host_must_fit_together(
    hosts: str, said: list[tuple[float, float]], line: str, capsys: pytest.CaptureFixture
) -> None:
    """1 GiB stays free. One host without room is enough for all to write straight."""
    for rank in range(len(hosts)):
        runtime = Job16(rank, 0, len(hosts), torch.device("cpu"), 1, tuple(hosts))
        object.__setattr__(runtime, "said", [(int(need * GB), int(free * GB)) for need, free in said])
        assert isinstance(choose_way(runtime, [measure(b"")]), Straight if line else InMemory)
    assert capsys.readouterr().out == (f"save: {line}: written while the run waits\n" if line else "")


def test_what_is_on_a_device_comes_over_a_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a copy needs room for the largest twice; a save without one needs it, too, but once."""
    measures = [Measure(), Measure()]
    for one, size in zip(measures, (3 * GB, GB), strict=True):
        one.seek(size, os.SEEK_CUR)
    for device, free, way in (("cpu", 5.1, InMemory), ("cuda", 5.1, Straight), ("cuda", 8.1, InMemory)):
        monkeypatch.setattr(snapshot, "available", lambda free=free: int(free * GB))
        runtime = Runtime(0, 0, 1, torch.device(device), 1, ("here",))
        assert isinstance(choose_way(runtime, measures), way), (device, free)


LARGE = 256 << 20
IN_A_SMALL_GROUP = """\
import json, os, sys, time
sys.path[0] = {repository!r}
from pathlib import Path
import torch
from sycoca_ds.engine.checkpoint.contents import measure
from sycoca_ds.engine.checkpoint.saving import Writing
from sycoca_ds.engine.checkpoint.snapshot import InMemory, Straight, choose_way
from sycoca_ds.engine.checkpoint.writer import Job
from sycoca_ds.engine.ranks.runtime import Runtime

def most(process):
    (line,) = [line for line in Path(f"/proc/{{process}}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

def start(handles):
    global writing
    writing = Writing(job, handles, 4)
    return writing

group = sys.argv[1]
if group:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
files = {{"a.pt": {{"large": torch.ones({large}, dtype=torch.uint8)}}, "b.pt": {{"small": torch.arange(5)}}}}
measures = [measure(content) for content in files.values()]
# it waits for another rank, so that it can be looked at
job = Job({folder!r}, list(files), [one.size for one in measures], 0, 2, {{"step": 4}})
Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
before = most("self")
way = {way}
way.hand_over(files, start)
print(json.dumps([type(way).__name__, most("self") - before, most(writing._process.pid)]))
Path({folder!r}, ".written_by_rank_00001.json").write_text(json.dumps({{"error": "", "files": {{}}}}))
assert writing.result()["error"] == ""
"""


def in_a_small_group(tmp_path: Path, way: str, group: Path | None) -> tuple[int, str]:
    """Saves 256 MiB in a process of a control group."""
    folder = step_folder(tmp_path, 4)
    folder.mkdir(parents=True)
    script = tmp_path / "save.py"
    script.write_text(IN_A_SMALL_GROUP.format(repository=str(REPOSITORY), folder=str(folder), large=LARGE, way=way))
    return finish(start_warm(["" if group is None else str(group)], ranks=0, script=script))


@pytest.mark.slow
def test_where_a_copy_would_be_killed_for_straight_saves_in_a_few_mib(tmp_path: Path) -> None:
    """In a control group that holds the tensor and half of it besides. What is chosen there is chosen by the group's own limit."""
    chosen = 'choose_way(Runtime(0, 0, 1, torch.device("cpu"), 1, ("here",)), measures)'
    with small_group(LARGE + LARGE // 2) as group:
        if group is not None:
            status, output = in_a_small_group(tmp_path / "copied", "InMemory()", group)
            assert status == -9 and not output, output
        status, output = in_a_small_group(tmp_path / "straight", "Straight()" if group is None else chosen, group)
    *said, last = output.splitlines()
    assert status == 0, output
    name, own, writer = json.loads(last)
    assert name == "Straight" and own < 32 << 20 and writer < 64 << 20, last
    if group is not None:
        assert len(said) == 1 and said[0].startswith("save: 0.3 GB do not fit beside the run (0."), output
    folder = step_folder(tmp_path / "straight", 4)
    assert damage(folder) is None and torch.load(folder / "a.pt", mmap=True)["large"].sum() == LARGE


@pytest.mark.slow
def test_a_tensor_above_what_the_system_writes_at_once_is_whole_and_so_is_what_follows() -> None:
    """Linux writes at most 0x7ffff000 bytes a call and says so by the number that it returns."""
    large = torch.zeros((1 << 31) + 4096, dtype=torch.uint8)
    large[-1], after = 7, torch.arange(5)
    file = WholeFile(os.memfd_create("large"), "r+b")
    torch.save({"large": large, "after": after}, file)
    assert file.tell() == os.fstat(file.fileno()).st_size > large.numel()
    del large
    found = torch.load(f"/proc/self/fd/{file.fileno()}", mmap=True)
    assert found["large"].numel() == (1 << 31) + 4096 and found["large"][-1] == 7 and not found["large"][:4096].any()
    assert found["after"].tolist() == [0, 1, 2, 3, 4]
