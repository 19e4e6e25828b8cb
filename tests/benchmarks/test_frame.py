"""The frame of the benchmarks: which turns count, what is compared with the last run; one benchmark through the whole command."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import frame
from benchmarks.frame import Clock, Row, Turn, fallen, in_turns, last_of
from benchmarks.limits import products, training_shapes, write_rate
from benchmarks.parts import PARTS, retrieval
from benchmarks.parts.training import CONTEXT, lengths, longest, sorted_by_length
from benchmarks.peers import PeerProcess, peers
from tests.worlds import REPOSITORY
from tests.worlds.models.small_model import SMALL_MODEL


def row(ours: list[Turn], theirs: list[Turn], **more) -> dict:
    return Row("part", "work", "things/s", 10, ours, {"peer": theirs}, **more).facts()


def test_quiet_turns_alone_count() -> None:
    facts = row([Turn(1, 1), Turn(5, 1, 0.9), Turn(2, 1)], [Turn(4, 4), Turn(4, 4), Turn(6, 4)], limit=20, limited_by="a wall")
    assert facts["rate"] == pytest.approx(10 / 1.5) and facts["spread"] == [5, 10]
    assert facts["ratios"]["peer"] == {"median": 3.5, "low": 3, "high": 4}
    assert facts["disturbed"] == (1, 3) and not facts["processor_time"] and facts["of_limit"] == pytest.approx(1 / 3)
    (line,) = frame.lines(facts)
    assert "3.50 (3.00 to 4.00)" in line and "33 % of a wall" in line and line.endswith("| 1 of 3 |")


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
    assert frame.waited() == 0
    (tmp_path / "cpu").write_text("some avg10=1.00 avg60=2.00 avg300=3.00 total=2500000\nfull avg10=0 total=9\n")
    assert frame.waited() == 2.5


def test_what_has_fallen_by_more_than_a_tenth_is_named(tmp_path: Path) -> None:
    before = row([Turn(1, 1)], [Turn(2, 1)])
    for name, kind in (("2026-01-01.json", "laptop"), ("2026-01-02.json", "other"), ("2026-01-09.json", "laptop")):
        (tmp_path / name).write_text(json.dumps({"machine": {"kind": kind}, "rows": [before]}))
    last = last_of(tmp_path, "laptop", "2026-01-05.json")
    assert last["file"].endswith("2026-01-01.json") and last_of(tmp_path, "laptop", "2026-01-01.json") is None
    assert fallen([row([Turn(1, 1)], [Turn(1.85, 1)])], last) == []
    assert fallen([row([Turn(1, 1)], [Turn(1.75, 1)])], last) == [f"part, work: 1.75 beside peer, 2.00 in {last['file']}"]
    assert fallen([row([Turn(1, 1)], [Turn(1, 1)])], None) == []


def test_limits_are_rates_of_the_work_that_is_named(tmp_path: Path) -> None:
    shapes = training_shapes(SMALL_MODEL, 2, 7)
    width, text = SMALL_MODEL.image.width, SMALL_MODEL.text
    assert shapes[0] == (2 * (SMALL_MODEL.image.patches + 1), width, 3 * width)
    assert shapes[-1] == (14, SMALL_MODEL.text_decoder.width, text.vocab_size)
    turns, operations = products(shapes, torch.float32, torch.device("cpu"), turns=2)
    assert len(turns) == 2 and operations == sum(2 * rows * given * out for rows, given, out in shapes)
    assert write_rate(tmp_path, 1 << 16, turns=1) > 1e3 and not list(tmp_path.iterdir())


def test_a_peer_that_sorts_by_length_gets_the_same_captions() -> None:
    counts = lengths("real", None, 12)
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
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    words = ["retrieval", "--turns", "2", "--threads", "1", "--out", str(tmp_path / "kept"), "--open-clip", str(tmp_path / "none")]
    assert command.main([*words, "--note", str(tmp_path / "note.md")]) == 0
    (kept,) = (tmp_path / "kept").iterdir()
    record = json.loads(kept.read_text())
    assert record["peers"] == {} and record["fallen"] == [] and record["failed"] == {}
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
