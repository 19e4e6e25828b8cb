"""The rules of docs/failures.md, each with what happened before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sycoca_ds.supervise.causes import (
    DATA,
    DEVICE,
    DISK,
    DIVERGED,
    ERROR,
    HANG,
    KILLED,
    MEMORY,
    NETWORK,
    PREEMPTED,
    USER,
    Cause,
    find_cause,
)
from sycoca_ds.supervise.evidence import Evidence, Failure
from sycoca_ds.supervise.verdict import (
    DONE,
    RESTART,
    STOP,
    WITHOUT_HOST,
    decide,
    judge,
    read_history,
    trail_of,
    write_verdict,
)


def before(
    kind: str, *, step: int | None = 7, host: str = "node-b", progress: bool = False, action: str = RESTART
) -> dict[str, Any]:
    return {"attempt": 1, "class": kind, "host": host, "step": step, "progress": progress, "action": action}


def decided(
    kind: str,
    past: list[dict[str, Any]],
    *,
    step: int | None = 7,
    host: str = "node-b",
    progress: bool = False,
    allowed: bool = True,
    **more: Any,
) -> str:
    cause = Cause(kind, ("[Errno 28] No space left on device",), 1, host, "step", step)
    trail = [] if progress else trail_of(past)
    evidence = Evidence(status=1, **more)
    action, reason = decide(cause, evidence, trail, past, 3, lambda name: "" if allowed and name == "node-b" else "not that one")
    assert reason
    return action


@pytest.mark.parametrize("kind", [ERROR, DIVERGED, MEMORY, KILLED, NETWORK, HANG, PREEMPTED])
def test_the_first_time_it_goes_on(kind: str) -> None:
    assert decided(kind, []) == RESTART


@pytest.mark.parametrize("kind", [USER, DATA])
def test_what_would_come_again_stops_at_once(kind: str) -> None:
    assert decided(kind, [], progress=True) == STOP


@pytest.mark.parametrize("kind", [ERROR, DIVERGED, MEMORY, KILLED])
def test_the_same_at_the_same_step_twice_stops(kind: str) -> None:
    assert decided(kind, [before(kind)]) == STOP
    assert decided(kind, [before(kind, step=6)]) == RESTART
    assert decided(kind, [before(kind, step=None)], step=None) == RESTART, "it is not known"
    assert decided(kind, [before(kind)], progress=True) == RESTART
    assert decided(kind, [before(kind, progress=True)]) == RESTART, "there was a newer checkpoint in between"
    assert decided(kind, [before(kind), before(PREEMPTED, step=9)]) == STOP
    assert decided(kind, [before(ERROR if kind != ERROR else KILLED)]) == RESTART, "another class"
    assert decided(kind, [before(kind, action=STOP)]) == RESTART, "someone has mended something"


@pytest.mark.parametrize("kind", [NETWORK, HANG])
def test_a_host_that_falls_silent_twice_is_left_out_where_that_is_allowed(kind: str) -> None:
    other = NETWORK if kind == HANG else HANG
    for past in ([before(kind, step=3)], [before(other)], [before(kind, progress=True), before(KILLED, progress=True)]):
        assert decided(kind, past) == WITHOUT_HOST
        assert decided(kind, past, progress=True) == WITHOUT_HOST, "whether or not there was progress"
        assert decided(kind, past, allowed=False, step=9) == RESTART
        assert decided(kind, past, host="node-a", step=9) == RESTART
    assert decided(kind, [before(kind), *[before(KILLED, progress=True)] * 5]) == RESTART, "long ago"
    assert decided(kind, [before(kind, host="")], host="") == (RESTART if kind == NETWORK else STOP)


def test_a_network_that_is_down_for_long_is_waited_for() -> None:
    assert decided(NETWORK, [before(NETWORK, step=None)], step=None, allowed=False) == RESTART
    assert decided(NETWORK, [before(NETWORK)], allowed=False) == RESTART
    assert decided(NETWORK, [before(NETWORK)] * 3, allowed=False) == STOP


def test_a_device_is_taken_out_or_named() -> None:
    assert decided(DEVICE, []) == WITHOUT_HOST
    assert decided(DEVICE, [], allowed=False) == STOP


@pytest.mark.parametrize("free, needed, action", [(10 << 20, 0, STOP), (1 << 30, 1 << 30, STOP), (2 << 30, 1 << 30, RESTART)])
def test_a_full_disk_stops_unless_there_is_room_again(free: int, needed: int, action: str) -> None:
    assert decided(DISK, [], free=free, needed=needed) == action
    cause = Cause(DISK, ("OSError: [Errno 30] Read-only file system",))
    assert decide(cause, Evidence(1, free=1 << 40), [], [], 3, str)[0] == STOP


def test_restarts_without_progress_are_counted() -> None:
    trail = [before(KILLED, step=n) for n in range(3)]
    assert decided(KILLED, trail[:2]) == RESTART and decided(KILLED, trail) == STOP
    assert decided(KILLED, trail, progress=True) == RESTART
    assert decided(KILLED, [*trail, before(PREEMPTED, progress=True)]) == RESTART
    assert decided(KILLED, [*trail[:2], before(PREEMPTED)]) == RESTART, "a preemption is nobody's fault"
    assert decided(PREEMPTED, trail) == RESTART
    assert decided(KILLED, [*trail, before(ERROR, action=STOP)]) == RESTART, "after a STOP they begin anew"


def judged(evidence: Evidence, past: list[dict[str, Any]] | None = None):
    return judge(4, evidence, past or [], restarts=3, why_not_without=lambda host: "")


def test_done() -> None:
    found = judged(Evidence(status=1, run={"status": "completed", "step": 9}, before=3, after=9))
    assert (found.action, found.kind, found.progress) == (DONE, "completed", True)
    asked = judged(Evidence(status=75, ended="asked", run={"status": "preempted", "step": 5}, before=3, after=5))
    assert (asked.action, asked.kind) == (DONE, PREEMPTED)


@pytest.mark.parametrize("old, new, progress", [(None, None, False), (None, 2, True), (2, 2, False), (4, 2, False), (2, 4, True)])
def test_progress_is_a_newer_checkpoint(old: int | None, new: int | None, progress: bool) -> None:
    assert judged(Evidence(status=1, before=old, after=new)).progress == progress


def test_a_verdict_is_written_and_read(tmp_path: Path) -> None:
    failure = Failure(1, "vm", 1.0, "error", "ValueError: x", "step", 7)
    evidence = Evidence(status=1, failures=(failure,), left=("process 7 on this machine does not end, though it was killed",))
    found = judged(evidence)
    assert found == judged(evidence), "the same evidence, the same verdict"
    write_verdict(tmp_path, found.record(), tmp_path / "history.jsonl")
    write_verdict(tmp_path, found.record(), tmp_path / "history.jsonl")
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"attempt": 5, "cla')
    assert read_history(tmp_path / "history.jsonl") == [found.record()] * 2
    import json

    record = json.loads((tmp_path / "verdict.json").read_text())
    assert record == found.record() and record["class"] == "error" and record["action"] == RESTART
    assert record["evidence"] == ["rank 1 on vm: ValueError: x", evidence.left[0]]
    assert found.line() == "error of rank 1 on vm in step of step 7: rank 1 on vm: ValueError: x"
    assert find_cause(evidence).kind == found.kind
