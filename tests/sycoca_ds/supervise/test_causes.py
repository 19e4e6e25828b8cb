"""What each fault left behind when it was really done, to two ranks under `deepspeed` unless another launcher is named, and what is
made of it. Times are those of the recordings, counted from a moment shortly before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sycoca_ds.engine.safety.status import LAUNCHER_GONE
from sycoca_ds.supervise import causes
from sycoca_ds.supervise.causes import CLASSES, find_cause
from sycoca_ds.supervise.evidence import End, Evidence, Failure, Sign

GLOO = "RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:"
RESET = f"{GLOO}537] Read error [127.0.0.1]:39861: Connection reset by peer. This is typically caused by a remote worker"
CLOSED = f"{GLOO}553] Connection closed by peer [127.0.0.1]:51905. This is typically caused by a remote worker crashing."
SHM = "RuntimeError: DataLoader worker (pid 8225) is killed by signal: Killed. "
SKIPPED = "RuntimeError: 3 steps in a row to step 8 were skipped for gradients that are not finite or spikes: lower"
ALLOCATOR = "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
STOPPED = (
    "rank 1 on vm gives no sign of life for 7 s, last in step of step 5: it was stopped, its machine is down, or the network to it"
)
STUCK = "rank 1 on vm is stuck in {phase} of step 6, the others wait: step of step 6 takes longer than its limit of 0:08"
NOT_REACHED = (
    "rank 0 at 127.0.0.1 is not reached from rank 1 on vm for 7 s: it was stopped, its machine is down, or the network to it"
)
KILLING = ("[2026-11-26 08:40:26,007] [INFO] [launch.py:253:sigkill_handler] Killing subprocess 30462",)
GONE = "the launcher is gone: saving after this step, then the end"


def code(status: int) -> str:
    words = "['/srv/sycoca/.venv/bin/python', '-u', 'sycoca_ds/train.py', '--local_rank=1', '--preset', 'tiny']"
    return f"[2026-11-26 08:42:52,379] [ERROR] [launch.py:259:sigkill_handler] {words} exits with return code = {status}"


def failed(rank: int, time: float, message: str, kind: str = "error", phase: str = "step", step: int = 6, **more: str) -> Failure:
    return Failure(rank, "vm", time, kind, message, phase, step, **more)


def signs(*places: tuple[str, int, float]) -> tuple[Sign, ...]:
    return tuple(Sign(rank, "vm", *place) for rank, place in enumerate(places))


def ends(*seen: tuple[int, int, float]) -> tuple[End, ...]:
    return tuple(End(rank, "vm", status, time) for rank, status, time in seen)


FAILED = {"status": "failed", "step": 5, "steps": 12, "checkpoint": None}
RUNNING = {**FAILED, "status": "running"}
SAVED = {"status": "preempted", "step": 6, "steps": 12, "checkpoint": 6}
IN_STEP = signs(("step", 6, 5.4), ("step", 6, 6.4))

RECORDED = {
    "kill -9 of a rank": Evidence(
        status=1,
        run=FAILED,
        failures=(failed(0, 25.65, RESET),),
        signs=signs(("step", 6, 3.7), ("step", 5, 4.7)),
        ends=ends((1, -9, 25.67), (0, 1, 25.97)),
        said=(RESET, *KILLING, code(1)),
    ),
    "SIGSTOP of a rank": Evidence(
        status=None,
        ended="the command did not end within 0:20 after its ranks had",
        run=RUNNING,
        failures=(failed(0, 83.69, STOPPED, "hang"),),
        signs=signs(("step", 6, 19.4), ("step", 5, 27.5)),
        ends=ends((0, 76, 84.7)),
        said=KILLING,
    ),
    "SIGSTOP of rank 0": Evidence(
        status=None,
        ended="the command did not end within 0:20 after its ranks had",
        run=RUNNING,
        failures=(failed(1, 83.69, NOT_REACHED, "hang"),),
        signs=signs(("step", 5, 27.5), ("step", 6, 19.4)),
    ),
    "SIGSEGV in a rank": Evidence(
        status=245,
        run=FAILED,
        failures=(failed(0, 72.01, CLOSED),),
        signs=signs(("step", 6, 4.0), ("step", 6, 5.0)),
        ends=ends((1, -11, 71.73), (0, 1, 72.15)),
        said=(
            "Fatal Python error: Segmentation fault",
            "Current thread 0x00007f0e5c3c4740 (most recent call first):",
            '  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at',
            CLOSED,
            code(-11),
        ),
    ),
    "exception in a rank": Evidence(
        status=1,
        run=FAILED,
        failures=(failed(1, 59.5, "ValueError: something unexpected"), failed(0, 59.85, RESET)),
        signs=IN_STEP,
        ends=ends((1, 1, 59.54), (0, 1, 60.0)),
        said=("ValueError: something unexpected", RESET, code(1)),
    ),
    "more memory than there is": Evidence(
        status=1,
        run=FAILED,
        failures=(failed(1, 40.05, ALLOCATOR), failed(0, 40.32, RESET)),
        signs=IN_STEP,
        ends=ends((1, 1, 40.14)),
        said=(ALLOCATOR, RESET, code(1)),
    ),
    "SIGTERM to a rank": Evidence(
        status=75, run=SAVED, signs=IN_STEP, ends=ends((0, 75, 91.92), (1, 75, 91.97)), said=(code(75),), after=6
    ),
    "rank stuck in a step": Evidence(
        status=76,
        run=RUNNING,
        failures=(failed(0, 72.06, STUCK.format(phase="step"), "hang"), failed(1, 73.45, STUCK.format(phase="step"), "hang")),
        signs=signs(("step", 6, 4.8), ("step", 6, 4.8)),
        ends=ends((0, 76, 73.29), (1, 76, 73.45)),
        said=("frame #2: c10::DistNetworkError::DistNetworkError(c10::SourceLocation, ...) + 0x72", code(76)),
    ),
    "rank stuck in its data": Evidence(
        status=76,
        run=FAILED,
        failures=(failed(1, 54.72, STUCK.format(phase="data"), "hang", phase="data"), failed(0, 54.94, CLOSED)),
        signs=signs(("step", 6, 4.9), ("data", 6, 4.9)),
        ends=ends((1, 76, 54.77)),
        said=(CLOSED, code(76)),
    ),
    "kill -9 of a loader process": Evidence(
        status=1,
        run=FAILED,
        failures=(failed(1, 20.4, SHM, phase="data", step=4), failed(0, 20.67, CLOSED, step=4)),
        signs=signs(("step", 4, 5.6), ("data", 4, 5.6)),
        ends=ends((1, 1, 20.46), (0, 1, 21.18)),
        said=(SHM, CLOSED, code(1)),
    ),
    "kill -9 of a loader process that was in the middle of an answer": Evidence(
        status=1,
        run=FAILED,
        failures=(
            failed(
                1,
                20.4,
                "ConnectionResetError: [Errno 104] Connection reset by peer",
                phase="data",
                step=4,
                through="/lib/python3.11/multiprocessing/queues.py /lib/python3.11/multiprocessing/connection.py",
            ),
            failed(0, 20.67, CLOSED, step=4),
        ),
        signs=signs(("step", 4, 5.6), ("data", 4, 5.6)),
        said=("ConnectionResetError: [Errno 104] Connection reset by peer", CLOSED, code(1)),
    ),
    "NaN in every step": Evidence(
        status=1,
        run={**FAILED, "step": 8, "checkpoint": 4},
        failures=(failed(0, 86.61, SKIPPED, step=8), failed(1, 86.61, SKIPPED, step=8)),
        signs=signs(("step", 8, 6.8), ("step", 8, 6.8)),
        said=(SKIPPED, code(1)),
    ),
    "kill -9 of launch.py": Evidence(
        status=0, run={**SAVED, "step": 4, "checkpoint": 4}, signs=signs(("step", 4, 0.4), ("step", 4, 0.4)), said=(GONE,), after=4
    ),
    "kill -9 of deepspeed": Evidence(
        status=137,
        run={**SAVED, "step": 4, "checkpoint": 4},
        signs=signs(("step", 4, 0.5), ("step", 4, 0.5)),
        said=(GONE, *KILLING),
        after=4,
    ),
    "a module that is not there": Evidence(
        status=1,
        said=("Traceback (most recent call last):", "ModuleNotFoundError: No module named 'nowhere_at_all'", *KILLING, code(1)),
    ),
    "a folder that is not there": Evidence(
        status=2,
        said=(
            "error: /tmp/nowhere: no such folder; expected a data set folder; make one with: python -m data_pipeline build ...",
            *KILLING,
            code(2),
        ),
    ),
    "the end": Evidence(status=0, run={"status": "completed", "step": 12, "steps": 12, "checkpoint": 12}, signs=IN_STEP, after=12),
}
EXPECTED = {
    "kill -9 of a rank": ("killed", 1, "step", 5),
    "SIGSTOP of a rank": ("hang", 1, "step", 5),
    "SIGSTOP of rank 0": ("hang", 0, "step", 5),
    "SIGSEGV in a rank": ("error", 1, "step", 6),
    "exception in a rank": ("error", 1, "step", 6),
    "more memory than there is": ("out of memory", 1, "step", 6),
    "SIGTERM to a rank": ("preempted", None, "", 6),
    "rank stuck in a step": ("hang", 1, "step", 6),
    "rank stuck in its data": ("hang", 1, "data", 6),
    "kill -9 of a loader process": ("killed", 1, "data", 4),
    "kill -9 of a loader process that was in the middle of an answer": ("killed", 1, "data", 4),
    "NaN in every step": ("diverged", 0, "step", 8),
    "kill -9 of launch.py": ("killed", None, "", 4),
    "kill -9 of deepspeed": ("killed", None, "", 4),
    "a module that is not there": ("error", None, "launch", None),
    "a folder that is not there": ("user error", 0, "launch", None),
    "the end": ("completed", None, "", 6),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_a_fault_leaves_says_what_it_was(name: str) -> None:
    cause = find_cause(RECORDED[name])
    assert (cause.kind, cause.rank, cause.phase, cause.step) == EXPECTED[name]
    assert cause.kind in CLASSES and cause.lines and all(cause.lines)
    assert cause.host == ("vm" if cause.rank is not None and RECORDED[name].signs else "")


def test_the_hostfile_names_the_host() -> None:
    known = replace(RECORDED["kill -9 of a rank"], host_of_rank=("node-a", "node-b"))
    assert find_cause(known).host == "node-b"


@pytest.mark.parametrize("name", ["kill -9 of a rank", "SIGSEGV in a rank"])
def test_a_rank_on_another_machine_is_known_by_what_others_say(name: str) -> None:
    """Nobody sees its exit status; launch.py tells the one that it saw first, and never of which rank."""
    remote = replace(RECORDED[name], ends=())
    cause = find_cause(remote)
    assert cause.rank == 1 and cause.kind == EXPECTED[name][0]
    with_code = replace(remote, said=(*remote.said[:-1], f"node-b: {code(-9 if name.startswith('kill') else -11)}"))
    with_code = replace(with_code, host_of_rank=("node-a", "node-b"))
    cause = find_cause(with_code)
    assert (cause.kind, cause.rank, cause.host) == (EXPECTED[name][0], 1, "node-b")


def test_a_cut_link_is_no_kill() -> None:
    """The other side says nothing, or is not reached: nobody there to hang up."""
    message = f"{GLOO}500] Timed out waiting 60000ms for recv operation to complete"
    cause = find_cause(replace(RECORDED["kill -9 of a rank"], ends=(), failures=(failed(0, 25.0, message),), said=(message,)))
    assert (cause.kind, cause.rank) == ("network", 1)
    unreachable = replace(RECORDED["kill -9 of a rank"], ends=(), unreachable=("node-b",), host_of_rank=("node-a", "node-b"))
    assert (find_cause(unreachable).kind, find_cause(unreachable).host) == ("network", "node-b")


def test_a_silent_rank_on_a_host_that_ssh_does_not_reach_is_the_network() -> None:
    stopped = replace(RECORDED["SIGSTOP of a rank"], host_of_rank=("node-a", "node-b"))
    assert (find_cause(stopped).kind, find_cause(stopped).host) == ("hang", "node-b")
    cause = find_cause(replace(stopped, unreachable=("node-b",)))
    assert (cause.kind, cause.rank, cause.host) == ("network", 1, "node-b")
    assert "node-b is not reached by ssh either" in cause.lines


@pytest.mark.parametrize("name", ["kill -9 of a rank", "kill -9 of a loader process"])
def test_a_kill_by_the_kernel_is_want_of_memory(name: str) -> None:
    """It looks like any other; the kernel's counter tells."""
    for where in ("", "vm"):
        cause = find_cause(replace(RECORDED[name], oom_kills={where: 1}))
        assert (cause.kind, cause.rank) == ("out of memory", 1)
        assert f"processes killed by the kernel for want of memory: {where or 'this machine'}: 1" in cause.lines
    assert find_cause(replace(RECORDED[name], oom_kills={"vm": 0, "": 1})).kind == "killed", "another machine's"


@pytest.mark.parametrize("name", ["kill -9 of a rank", "kill -9 of a loader process"])
def test_hosts_are_counted_under_their_names_in_the_hostfile(name: str) -> None:
    """Which may be addresses, while ranks say what their machine calls itself."""
    named = replace(RECORDED[name], host_of_rank=("10.0.0.1", "10.0.0.2"))
    assert find_cause(replace(named, oom_kills={"10.0.0.1": 0, "10.0.0.2": 1, "": 0})).kind == "out of memory"
    assert find_cause(replace(named, oom_kills={"10.0.0.1": 1, "10.0.0.2": 0, "": 1})).kind == "killed"


def test_a_kill_by_the_kernel_of_a_lone_rank_is_want_of_memory() -> None:
    """The command is the rank: nobody is left to see it end."""
    lone = Evidence(status=137, run=RUNNING, signs=signs(("step", 7, 0.0)))
    assert find_cause(lone).kind == "killed"
    assert find_cause(replace(lone, oom_kills={"": 1})).kind == "out of memory"


@pytest.mark.parametrize(
    "message",
    [
        "RuntimeError: DataLoader worker (pid 8225) is killed by signal: Killed. ",
        "RuntimeError: DataLoader worker (pid(s) 7655) exited unexpectedly",
        "RuntimeError: DataLoader worker (pid(s) 7655, 7656) exited unexpectedly",
    ],
)
def test_a_loader_process_that_is_gone_was_killed(message: str) -> None:
    """torch says either, by which of its threads is first to see it."""
    cause = find_cause(replace(RECORDED["kill -9 of a loader process"], failures=(failed(1, 25.0, message),)))
    assert (cause.kind, cause.rank) == ("killed", 1)


def test_hosts_that_are_not_reached_before_the_start() -> None:
    said = ("node-b: ssh: connect to host node-b port 22: No route to host", "pdsh@node-a: node-b: ssh exited with exit code 255")
    assert (find_cause(Evidence(status=255, said=said)).kind, find_cause(Evidence(status=255, said=said)).host) == (
        "network",
        "node-b",
    )
    cause = find_cause(Evidence(status=None, unreachable=("node-b",), said=("node-b: Connection timed out",)))
    assert (cause.kind, cause.host, cause.phase) == ("network", "node-b", "launch")


def test_torchruns_root_cause_names_the_rank() -> None:
    said = (
        "E1126 09:02:18.675000 13465 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 1",
        "Traceback (most recent call last):",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        "Failures:",
        "[1]:",
        "  time      : 2026-11-26_09:02:18",
        "  host      : localhost",
        "  rank      : 0 (local_rank: 0)",
        "  exitcode  : 1 (pid: 13473)",
        "Root Cause (first observed failure):",
        "[0]:",
        "  time      : 2026-11-26_09:02:18",
        "  host      : localhost",
        "  rank      : 1 (local_rank: 1)",
        "  exitcode  : -9 (pid: 13474)  (SIGKILL)",
        "  error_file: <N/A>",
        "  traceback : Signal 9 (SIGKILL) received by PID 13474",
    )
    cause = find_cause(replace(RECORDED["kill -9 of a rank"], ends=(), failures=(), said=said))
    assert (cause.kind, cause.rank, cause.host) == ("killed", 1, "vm")


def test_two_that_do_not_reach_each_other_are_no_hang() -> None:
    """Both speak, and which of them does so first says nothing. As it was recorded over two hosts whose link was cut."""
    down = "it was stopped, its machine is down, or the network to it"
    told = (
        Failure(1, "node-b", 57.94, "hang", f"rank 0 at 10.77.0.1 is not reached from rank 1 on node-b for 8 s: {down}", "step", 6),
        Failure(
            0, "node-a", 57.95, "hang", f"rank 1 on node-b gives no sign of life for 8 s, last in step of step 5: {down}", "step", 6
        ),
    )
    places = (Sign(0, "node-a", "step", 6, 12.0), Sign(1, "node-b", "step", 6, 21.1))
    cut = Evidence(
        status=None,
        ended="the command did not end within 0:12 after its ranks had",
        run=RUNNING,
        failures=told,
        signs=places,
        ends=(End(0, "node-a", 76, 59.0),),
        unreachable=("node-b",),
        host_of_rank=("node-a", "node-b"),
    )
    for evidence in (cut, replace(cut, failures=told[::-1]), replace(cut, unreachable=())):
        cause = find_cause(evidence)
        assert (cause.kind, cause.rank, cause.host, cause.phase, cause.step) == ("network", 1, "node-b", "step", 5)
    from_afar = find_cause(replace(cut, unreachable=("node-a",)))  # the supervisor stands on a third machine
    assert (from_afar.kind, from_afar.rank, from_afar.host) == ("network", 0, "node-a")


def test_what_the_supervisor_waited_for_in_vain() -> None:
    why = "rank 0 gives no sign of life for 61 s, and the job does not end"
    alone = Evidence(status=None, ended=why, run=RUNNING, signs=signs(("step", 7, 61.0)))
    assert (find_cause(alone).kind, find_cause(alone).rank, find_cause(alone).step) == ("hang", 0, 7)
    nobody = Evidence(status=None, ended="no rank gave a sign of life within 20:00")
    assert (find_cause(nobody).kind, find_cause(nobody).phase) == ("hang", "launch")


@pytest.mark.parametrize(
    "text, kind",
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB",
            "out of memory",
        ),
        ("RuntimeError: DataLoader worker (pid 5) exited unexpectedly... insufficient shared memory (shm)", "out of memory"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/torch_12'", "out of memory"),
        ("OSError: [Errno 28] No space left on device: '/data/run/metrics.jsonl'", "disk"),
        ("OSError: [Errno 30] Read-only file system: '/data/run/.x'", "disk"),
        ("error: step 12 could not be saved: /run/checkpoints has 0.04 GiB free, a checkpoint takes 0.03 (there: none)", "disk"),
        ("FaultyDevice: step 6: spike, and computed twice it gave different numbers (rank 1): take it out", "device"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "device"),
        ("samples 4 to 11 cannot be read (x); run `python -m data_pipeline verify` on the folder of 00001.tar", "data"),
        (SKIPPED, "diverged"),
        (RESET, "network"),
        ("torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error", "network"),
        ("torch.distributed.DistNetworkError: The client socket has timed out after 60000ms", "network"),
        ("KeyError: 'loss'", "error"),
    ],
)
def test_words_of_failures(text: str, kind: str) -> None:
    assert causes.kind_of(text) == kind


def test_a_launcher_that_does_not_end_after_a_kill_is_no_hang() -> None:
    """`deepspeed` waits for an ssh that waits for nobody; the supervisor ended it."""
    why = "the command did not end within 0:45 after its ranks had"
    for recorded in (RECORDED["kill -9 of a rank"], replace(RECORDED["kill -9 of a rank"], ends=(), said=())):
        cause = find_cause(replace(recorded, status=None, ended=why))
        assert (cause.kind, cause.rank) == ("killed", 1)


@pytest.mark.parametrize(
    "status, why, unreachable, kind",
    [
        (137, "SIGTERM", (), "killed"),  # kill -9 of `deepspeed`: the supervisor then asked the ranks to save
        (0, "SIGTERM", (), "killed"),  # kill -9 of pdsh, of which `deepspeed` takes no notice
        (255, "", ("node-b",), "network"),  # sshd of the other host is gone, and its ranks' launcher with it
        (1, LAUNCHER_GONE, (), "killed"),
        (143, LAUNCHER_GONE, (), "preempted"),
        (75, "SIGUSR1", (), "preempted"),
        (1, "SIGTERM", (), "preempted"),
    ],
)
def test_who_ended_a_run_that_was_saved(status: int, why: str, unreachable: tuple[str, ...], kind: str) -> None:
    run = {**SAVED, "why": why}
    assert find_cause(Evidence(status=status, run=run, unreachable=unreachable, signs=IN_STEP, after=6)).kind == kind


def test_words_that_found_no_room_on_the_disk() -> None:
    said = (f"rank 0 on vm: {STOPPED}; ending", code(76))
    cause = find_cause(replace(RECORDED["SIGSTOP of a rank"], failures=(), said=said))
    assert (cause.kind, cause.rank, cause.phase, cause.step) == ("hang", 1, "step", 5)


def test_other_peoples_errors_are_not_the_users() -> None:
    """What DeepSpeed's look for libraries leaves in every log."""
    said = ("/usr/bin/ld: cannot find -laio: No such file or directory", "collect2: error: ld returned 1 exit status", *KILLING)
    cause = find_cause(replace(RECORDED["SIGTERM to a rank"], said=said))
    assert cause.kind == "preempted"
    why = "rank 0 gives no sign of life for 8 s, and the job does not end"
    cause = find_cause(Evidence(status=None, ended=why, run=RUNNING, signs=signs(("step", 4, 8.0)), said=said))
    assert (cause.kind, cause.rank) == ("hang", 0)
    on_node_b = Evidence(status=2, said=(*said, "node-b: error: data.train is not set"), host_of_rank=("node-a", "node-b"))
    assert find_cause(on_node_b).kind == "user error"


def test_a_crash_that_nobody_saw_is_told_by_its_last_words_or_its_launchers_status() -> None:
    """The rank was reaped before the supervisor looked. Seen in the fault matrix, twice in 80 faults."""
    words = (
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f0e5c3c4740 (most recent call first):",
        '  File "a.py", line 1 in f',
    )
    alone = find_cause(Evidence(status=139, signs=IN_STEP[:1], said=words))
    assert (alone.kind, alone.lines[:2]) == ("error", ("a rank crashed: SIGSEGV", words[0]))
    assert [find_cause(Evidence(status=status)).kind for status in (139, 245, 137, 247)] == ["error", "error", "killed", "killed"]
    beside = Evidence(status=1, run=FAILED, failures=(failed(1, 59.5, CLOSED),), signs=IN_STEP, said=(*words, CLOSED))
    found = find_cause(beside)
    assert (found.kind, found.rank, found.lines[1]) == ("error", 0, words[0])
    # collectives abort their own process when a peer is gone, and what was killed did not crash
    assert (
        find_cause(Evidence(status=1, said=("Fatal Python error: Aborted", *words[1:]), signs=IN_STEP)).lines[0] != "a rank crashed"
    )
    assert find_cause(Evidence(status=139, signs=IN_STEP, ends=ends((1, -9, 59.0)), said=words)).kind == "killed"


def test_nothing_at_all_is_no_crash() -> None:
    assert find_cause(Evidence(status=None)).kind == "error"
    assert find_cause(Evidence(status=0)).kind == "killed", "launch.py killed before a rank said a word: deepspeed ends with 0"
    assert find_cause(Evidence(status=137)).kind == "killed"
