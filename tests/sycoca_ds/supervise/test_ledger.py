"""Every second once: what a run's attempts add up to, computed by hand beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sycoca_ds.supervise import ledger
from sycoca_ds.supervise.ledger import Line, following_firsts, lost_steps, make_line, parts_of, restart_times, shares, table

LOST_SOME = Line(
    attempt=1,
    kind="killed",
    launched=1000.0,
    down=0.0,
    total=100.0,
    met=20.0,
    spent={"start": 10.0, "first_step": 5.0, "step": 40.0, "data": 4.0, "save": 2.0, "validation": 1.0},
    first=1,
    reached=41,
    kept=31,
)
"""41 steps, the first of 5 s, the others of 1 s; killed at once after the 41st, and 18 s passed before nothing was left."""
RESUMED = Line(2, "completed", 1130.0, 30.0, 60.0, 15.0, {"start": 5.0, "first_step": 2.0, "step": 27.0, "end": 3.0}, 32, 60, 60)


def test_steps_that_are_done_again_are_lost() -> None:
    assert parts_of(LOST_SOME, next_first=32) == pytest.approx(
        {
            "start": 20 + 10 + 5,
            "productive": 30.0,  # of steps 2 to 31
            "data": 3.0,
            "saving": 2.0,
            "validation": 1.0,
            "lost": 10 + 1 + 18,
            "down": 0.0,
        }
    )
    assert lost_steps(LOST_SOME, 32) == 10


def test_the_end_of_an_attempt_that_ended_well_is_no_loss() -> None:
    found = parts_of(RESUMED, None)
    assert found["lost"] == 0 and found["down"] == pytest.approx(30 + 8) and found["productive"] == 27


def test_parts_are_the_whole() -> None:
    assert sum(shares([LOST_SOME, RESUMED]).values()) == pytest.approx(100 + 30 + 60)
    never_met = Line(3, "network", 0.0, 7.0, 50.0, None, {}, None, None, 60)
    assert sum(shares([LOST_SOME, RESUMED, never_met]).values()) == pytest.approx(247)
    assert parts_of(never_met, None) == {**dict.fromkeys(ledger.PARTS, 0.0), "start": 50.0, "down": 7.0}


@pytest.mark.parametrize(
    "kept, following, lost",
    [
        (31, None, 10),  # not resumed yet: what is in a checkpoint is kept
        (31, 22, 20),  # that checkpoint was damaged: the one before was taken
        (None, None, 41),
        (None, 1, 41),
        (41, 42, 0),
        (41, None, 0),
    ],
)
def test_the_next_attempt_says_what_was_kept(kept: int | None, following: int | None, lost: int) -> None:
    line = Line(**{**LOST_SOME.__dict__, "kept": kept})
    assert lost_steps(line, following) == lost
    parts = parts_of(line, following)
    assert sum(parts.values()) == pytest.approx(line.total)
    assert parts["productive"] == pytest.approx(max(0, 40 - lost) if lost < 41 else 0.0)


def test_attempts_that_took_no_step_are_looked_over() -> None:
    none = Line(2, "network", 0.0, 0.0, 1.0, None, {}, None, None, 31)
    assert following_firsts([LOST_SOME, none, RESUMED]) == [32, 32, None]


BEAT = {
    "phase": "step",
    "step": 8,
    "seconds": 0.3,
    "first": 5,
    "spent": {"start": 2.0, "first_step": 1.0, "step": 0.5, "save": 0.0},
}


@pytest.mark.parametrize(
    "phase, step, told, reached",
    [
        ("step", 8, None, 7),
        ("data", 8, 6, 7),  # run_status.json is written every log_every steps
        ("save", 8, 8, 8),
        ("end", 8, 8, 8),
        ("step", 8, 8, 8),  # the loop has left the step, not yet the phase
        ("start", 4, None, 4),
    ],
)
def test_a_line_from_heartbeats(phase: str, step: int, told: int | None, reached: int) -> None:
    behind = {**BEAT, "step": 3, "spent": {}}
    beats = [behind, {**BEAT, "phase": phase, "step": step}]
    line = make_line(4, "killed", launched=1.0, down=2.0, total=9.0, met=3.0, beats=beats, told=told, kept=4)
    assert line.reached == reached and line.first == 5 and line.spent == {"start": 2.0, "first_step": 1.0, "step": 0.5}


def test_a_start_that_came_to_nothing_has_no_steps() -> None:
    line = make_line(1, "error", launched=1.0, down=0.0, total=9.0, met=None, beats=[], told=None, kept=None)
    assert line.steps() == 0 and line.first is None and restart_times([line]) == []


def test_what_is_shown(tmp_path: Path) -> None:
    for line in (LOST_SOME, RESUMED):
        ledger.append(tmp_path, line)
    with open(tmp_path / ledger.LEDGER_FILE, "a") as file:
        file.write('{"attempt": 3, "ki')  # a crash in the middle of a line
    assert ledger.read_ledger(tmp_path) == [LOST_SOME, RESUMED]
    text = table([LOST_SOME, RESUMED])
    assert "2 attempts in 3:10, 10 steps done again" in text
    assert table([RESUMED]).startswith("1 attempt in ")
    assert f"  productive {'0:57':>10}{30.0:>8.1f} %" in text
    assert "launch to first step: 28.5 s on average (meet 17.5 s, load 7.5 s, first step 3.5 s)" in text


def test_curves_have_one_point_an_attempt(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for lines in ([LOST_SOME], [LOST_SOME, RESUMED]):
        ledger.show_in_tensorboard(tmp_path, lines)
    board = EventAccumulator(str(tmp_path / "tensorboard/supervise"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert {f"time/{name}_share" for name in ledger.PARTS} < set(tags)
    assert all(tag.startswith("time/") for tag in tags), "no group before `loss`, which TensorBoard opens"
    assert [(event.step, event.value) for event in board.Scalars("time/productive_share")] == [
        (1, pytest.approx(30 / 100)),
        (2, pytest.approx(57 / 190)),
    ]
