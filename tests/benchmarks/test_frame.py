"""The frame of the benchmarks: which turns count, what is compared with the last run; one benchmark through the whole command."""

from __future__ import annotations

import json
import os
import signal
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import frame
from benchmarks.frame import Clock, Row, Turn, earlier, fallen, in_turns, measured, timed
from benchmarks.limits import products, training_shapes, write_rate
from benchmarks.parts import PARTS, retrieval
from benchmarks.parts.training import CONTEXT, lengths, longest, sorted_by_length
from benchmarks.peers import PeerProcess, peers
from tests.worlds import REPOSITORY
from tests.worlds.models.small_model import SMALL_MODEL


def row(ours: list[Turn], theirs: list[Turn], **more) -> dict:
    return Row("part", "work", "things/s", 10, ours, {"peer": theirs}, **more).facts()


def test_quiet_turns_alone_count() -> None:
    ours = [Turn(1, 1, 0.0), Turn(5, 1, 0.9), Turn(2, 1, 0.1)]
    facts = row(ours, [Turn(4, 4, 0.0), Turn(4, 4, 0.0), Turn(6, 4, 0.0)], limit=20, limited_by="a wall")
    assert facts["rate"] == pytest.approx(10 / 1.5) and facts["spread"] == [5, 10]
    assert facts["ratios"]["peer"] == {"median": 3.5, "low": 3, "high": 4}
    assert not facts["processor_time"] and facts["of_limit"] == pytest.approx(1 / 3)
    (line,) = frame.lines(facts)
    assert "3.50 (3.00 to 4.00)" in line and "33 % of a wall" in line and line.endswith("| 2 of 3, peer 3 of 3 |")


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([Turn(1, 1)], [Turn(3, 1)], "unknown"),  # the kernel does not say
        ([Turn(1, 0, 0.0)], [Turn(3, 0, 0.9)], "1 of 1, peer 0 of 1: all counted"),
        ([Turn(1, 1, 0.5)], [Turn(3, 1, 0.9)], "0 of 1, peer 0 of 1: by processor time"),
    ],
)
def test_what_stands_in_for_quiet_turns_is_said(ours: list[Turn], theirs: list[Turn], said: str) -> None:
    (line,) = frame.lines(row(ours, theirs))
    assert line.endswith(f"| {said} |")


def test_a_processor_waits_for_a_gpu() -> None:
    """Its own time says nothing of the work there."""
    clock = Clock.__new__(Clock)
    clock.on_gpu, clock.synchronise = True, lambda: None
    clock.start()
    sum(range(100_000))
    assert clock.stop().processor == 0


def test_a_ratio_is_of_one_turn() -> None:
    """A machine that slows down by the turn slows both sides; medians alone would say 1.5."""
    facts = row([Turn(1, 1), Turn(2, 1), Turn(4, 1)], [Turn(2, 1), Turn(4, 1), Turn(8, 1)])
    assert facts["ratios"]["peer"] == {"median": 2, "low": 2, "high": 2}


def test_where_most_turns_were_disturbed_processor_time_stands_for_time() -> None:
    ours, theirs = [Turn(9, 1, 0.8), Turn(7, 1.2, 0.9)], [Turn(3, 2, 0.5), Turn(30, 3, 0.9)]
    facts = row(ours, theirs)
    assert facts["processor_time"] and facts["ratios"]["peer"]["median"] == pytest.approx((2 + 2.5) / 2)
    assert "by processor time" in frame.lines(facts)[0]
    alone = row(ours, theirs, limit_turns=[Turn(90, 0.5, 0.9)], limit_work=10, limited_by="decoding")
    assert alone["limit"] == 20 and alone["of_limit"] == pytest.approx(10 / 1.1 / 20), "a limit is of the same kind of seconds"
    unknown = row([Turn(9, 0, 0.8)], [Turn(3, 0, 0.5)])  # nobody looked at the processor: time it is
    assert not unknown["processor_time"] and unknown["ratios"]["peer"]["median"] == pytest.approx(1 / 3)


def test_a_clock_counts_processor_time_of_work_and_not_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    stalls = iter([1.0, 1.05])
    monkeypatch.setattr(frame, "waited", lambda: next(stalls))
    clock = Clock()
    clock.start()
    time.sleep(0.1)
    turn = clock.stop()
    assert turn.seconds >= 0.1 and turn.processor < 0.09 and turn.stalled == pytest.approx(0.05 / turn.seconds)
    assert in_turns({"a": lambda: Turn(1, 1), "b": lambda: Turn(2, 2)}, 2) == {"a": [Turn(1, 1)] * 2, "b": [Turn(2, 2)] * 2}


def test_pressure_is_read_as_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "PRESSURE", tmp_path / "cpu")
    assert frame.waited() is None and frame.stalled_share(None, 1.0) is None
    (tmp_path / "cpu").write_text("some avg10=1.00 avg60=2.00 avg300=3.00 total=2500000\nfull avg10=0 total=9\n")
    assert frame.waited() == 2.5


def test_what_has_fallen_by_more_than_a_tenth_is_named(tmp_path: Path) -> None:
    """Beside the newest note that has the row, else the newest run, of such a machine with as many threads."""
    kept, notes, machine = tmp_path / "kept", tmp_path / "notes", {"kind": "laptop", "threads": 2}

    def write(path: Path, *rows: dict, **more) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": machine, "rows": rows} | more))

    twice, alone = row([Turn(1, 1)], [Turn(2, 1)]), Row("part", "alone", "MB/s", 10, [Turn(1, 1)], detail="3 MB").facts()
    write(kept / "2026-01-01.json", twice, alone)
    write(kept / "2026-01-02.json", {**alone, "what": "another"})  # a run of another part hides nothing
    write(kept / "2026-01-03.json", row([Turn(1, 1)], [Turn(9, 1)]), quick=True)
    write(kept / "2026-01-04.json", row([Turn(1, 1)], [Turn(9, 1)]), machine={"kind": "laptop", "threads": 1})
    write(kept / "2026-01-09.json", row([Turn(1, 1)], [Turn(9, 1)]))  # later
    before = earlier(kept, notes, machine, "2026-01-05.json")
    first = kept / "2026-01-01.json"
    assert fallen([row([Turn(1, 1)], [Turn(1.85, 1)])], before) == []
    assert fallen([row([Turn(1, 1)], [Turn(1.75, 1)])], before) == [f"part, work: 1.75 beside peer, 2 in {first}"]
    slow = Row("part", "alone", "MB/s", 10, [Turn(1.2, 1)], detail="4 MB").facts()
    assert fallen([slow], before) == [f"part, alone: 8.33 MB/s, 10 in {first}"]
    assert fallen([row([Turn(1, 1)], [Turn(1, 1)])], {}) == []
    write(notes / "2025-12-31_bench.json", row([Turn(1, 1)], [Turn(4, 1)]))
    before = earlier(kept, notes, machine, "2026-01-05.json")
    assert "beside peer, 4 in" in fallen([row([Turn(1, 1)], [Turn(2, 1)])], before)[0], "a run that nobody noted is no yardstick"


def test_on_a_gpu_one_way_is_closed_before_the_next_is_opened() -> None:
    """Together they may not fit; a peer that does not fit alone costs its column, ours the row."""
    there: list[str] = []
    held: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def way(name: str, error: Exception | None = None):
        @contextmanager
        def opened():
            there.append(name)
            assert device.type == "cpu" or there == [name]
            try:
                if error is not None:
                    raise error
                model = torch.nn.Linear(1, 1)
                held.add(model)
                turn = timed(lambda model=model: model(torch.ones(1)))
                del model
                yield turn
            finally:
                turn = None
                assert device.type == "cpu" or not held, "somebody still holds its weights"
                there.remove(name)

        return opened

    ways = {"ours": way("ours"), "big": way("big", RuntimeError("big: OutOfMemoryError: 80 GiB")), "peer": way("peer")}
    device = torch.device("cuda")
    found = measured(ways, 3, device)
    assert {name: len(turns) for name, turns in found.items()} == {"ours": 3, "peer": 3} and there == []
    with pytest.raises(torch.OutOfMemoryError):
        measured({"ours": way("ours", torch.OutOfMemoryError("80 GiB"))}, 1, device)
    device = torch.device("cpu")
    assert {name: len(turns) for name, turns in measured({"a": way("a"), "b": way("b")}, 2, device).items()} == {"a": 2, "b": 2}


def test_limits_are_rates_of_the_work_that_is_named(tmp_path: Path) -> None:
    shapes = training_shapes(SMALL_MODEL, 2, 7)
    width, text = SMALL_MODEL.image.width, SMALL_MODEL.text
    assert shapes[0] == (2 * (SMALL_MODEL.image.patches + 1), width, 3 * width)
    assert shapes[-1] == (14, SMALL_MODEL.text_decoder.width, text.vocab_size)
    decoder = SMALL_MODEL.image_decoder.width
    assert (2 * SMALL_MODEL.image.patches, 4 * decoder, decoder) in shapes
    turns, operations = products(shapes, torch.float32, torch.device("cpu"), turns=2)
    assert len(turns) == 2 and operations == sum(2 * rows * given * out for rows, given, out in shapes)
    assert write_rate(tmp_path, 1 << 16, turns=1) > 1e3 and not list(tmp_path.iterdir())


def test_a_peer_that_sorts_by_length_gets_the_same_captions() -> None:
    counts = lengths("real", None, 12, Path("none"))
    assert sorted(counts) == sorted(torch.linspace(12, 24, 12).int().tolist()) and counts != sorted(counts)
    text = torch.zeros(12, CONTEXT, dtype=torch.int64)
    for place, count in enumerate(counts):
        text[place, :count] = place + 1
    cut = sorted_by_length(list(text.split(6)), 8)
    assert [len(part) for part in cut] == [6, 6] and [part.shape[1] for part in cut] == [24, 24]
    assert sorted(part[row, 0].item() for part in cut for row in range(6)) == list(range(1, 13))
    assert longest(cut[0]) < longest(cut[1]) == 24


def test_a_peers_error_is_said(tmp_path: Path) -> None:
    (tmp_path / "open_clip.py").write_text("__version__ = '9'\n")
    (tmp_path / "torchvision.py").touch()
    peer = PeerProcess("old one", [tmp_path])
    assert peer.ask("version")["version"] == "9"
    with pytest.raises(RuntimeError, match="old one: TypeError: 'NoneType' object is not callable"):
        peer.ask("measure")
    peer.close()


def test_a_peer_ends_with_the_benchmark_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip/__init__.py").write_text("import time\n__version__ = '9'\n")
    (tmp_path / "torchvision.py").touch()
    with pytest.raises(KeyboardInterrupt), peers(tmp_path, None) as found:
        (peer,) = found.values()
        assert peer.ask("version")["version"] == "9"
        os.kill(peer.process.pid, signal.SIGSTOP)  # as busy as it gets
        raise KeyboardInterrupt
    assert peer.process.returncode == -signal.SIGKILL


def test_one_benchmark_through_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for name, value in (("IMAGES", 40), ("TEXTS", 200), ("WIDTH", 16), ("CHUNK", 16)):
        monkeypatch.setattr(retrieval, name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    words = ["retrieval", "--turns", "2", "--threads", "1", "--out", str(tmp_path / "kept"), "--open-clip", str(tmp_path / "none")]
    assert command.main([*words, "--note", str(tmp_path / "note.md")]) == 0
    (kept,) = (tmp_path / "kept").iterdir()
    record = json.loads(kept.read_text())
    assert record["peers"] == {} and record["fallen"] == [] and record["failed"] == {}
    assert os.environ["OMP_NUM_THREADS"] == "1" and record["machine"]["threads"] == 1, "what is asked for, not what was there"
    assert json.loads((tmp_path / "note.json").read_text()) == record
    (found,) = record["rows"]
    assert len(found["ours"]) == len(found["peers"]["plain product and top-k"]) == 2 and found["of_limit"] > 0
    printed, note = capsys.readouterr().out, (tmp_path / "note.md").read_text()
    assert frame.lines(found)[0] in printed and frame.lines(found)[0] in note and record["machine"]["cpu"] in note

    monkeypatch.setattr(retrieval, "retrieve", lambda *_: 1 / 0)
    assert command.main(words) == 1  # the others still say something
    assert "| retrieval | failed: division by zero |" in capsys.readouterr().out


def test_the_plain_search_finds_the_ten_best_of_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", 16)
    image, text = torch.randn(40, 8), torch.randn(70, 8)
    best_I, best_T = retrieval.plain(image, text)
    score = image @ text.T
    assert best_I.tolist() == score.topk(10, dim=1).indices.tolist() and best_T.tolist() == score.topk(10, dim=0).indices.T.tolist()


def test_names_are_those_that_are_there(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.parse(["trainin"])
    assert "no benchmark 'trainin': expected training, engine" in capsys.readouterr().err
    assert command.parse(["--quick"]).parts == list(PARTS) and command.parse(["--quick"]).turns == 1
    for file in PARTS.values():
        assert (REPOSITORY / f"benchmarks/parts/{file}.py").exists()
