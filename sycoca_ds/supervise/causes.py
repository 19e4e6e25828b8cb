"""Which rank of an attempt failed first, and of what: a function of the evidence.

When one rank is gone the others fail after it, in the words of their collectives: connection closed, reset, refused, timed out.
Those are set aside first. Of what is left the earliest counts, by the clocks of the ranks' hosts; with nothing left, the rank that
is missing among those who complain.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace

from sycoca_ds.engine.safety.status import LAUNCHER_GONE
from sycoca_ds.supervise.evidence import Evidence, Failure
from sycoca_ds.train import EXIT_PREEMPTED

COMPLETED, PREEMPTED = "completed", "preempted"
USER, DATA, DISK, MEMORY, DEVICE = "user error", "data", "disk", "out of memory", "device"
NETWORK, HANG, KILLED, DIVERGED, ERROR = "network", "hang", "killed", "diverged", "error"
CLASSES = (COMPLETED, PREEMPTED, USER, DATA, DISK, MEMORY, DEVICE, NETWORK, HANG, KILLED, DIVERGED, ERROR)

AFTER_ANOTHER = re.compile(
    r"Connection (closed|reset|refused|aborted)|Broken pipe|closed by peer|remote process exited|ncclRemoteError|ncclSystemError"
    r"|communicator was aborted|Socket Timeout|socket timeout|Timed out (after|waiting)|wait timeout|Application timeout"
    r"|DistNetworkError|DistStoreError|failed to recv|Failed to recv|recvValue failed|No route to host|Network is unreachable"
    r"|heartbeat monitor|Watchdog caught collective operation timeout|collective operation timeout",
    re.IGNORECASE,
)
"""What collectives say on ranks whose peer, or the network to it, is gone."""
HUNG_UP = re.compile(r"closed|reset by peer|Broken pipe|remote process exited", re.IGNORECASE)
"""Those by which the other host says that there is no such process any more."""
WORDS = (
    (MEMORY, r"insufficient shared memory|</torch_\w+>: No space|/dev/shm\S*: No space|No space left on device: '/dev/shm"),
    (MEMORY, r"OutOfMemoryError|out of memory|MemoryError|allocate memory|bad_alloc|oom[-_ ]kill|Errno 12\]"),
    (
        DISK,
        r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error|Stale file handle",
    ),
    (DISK, r"step \d+ (could not be|is not) saved"),
    (DEVICE, r"FaultyDevice|uncorrectable ECC|ECC error|Xid|NVLink|fell off the bus|unspecified launch failure"),
    (DEVICE, r"illegal memory access|devices? (are|is) busy or unavailable"),
    (DEVICE, r"CUDNN_STATUS_(EXECUTION|INTERNAL)|CUBLAS_STATUS_(EXECUTION|INTERNAL)"),
    (DATA, r"data_pipeline verify|look at the store, the credentials"),
    (DIVERGED, r"steps in a row to step \d+ were skipped|gradient is exactly zero|no checkpoint yet to go back to"),
)
WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: (\w+)|exited)")
ASKED = tuple(128 + number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP))
"""Status of a launcher that was asked to stop."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
SILENT = re.compile(r"rank (\d+)(?: \(and \d+ more\))?(?: on (\S+) (?:gives no|is stuck)| at (\S+) is not reached)")
SAID = re.compile(r"^(?:\S+: )?rank (\d+) on (\S+): (.*); ending$")
PLACE = re.compile(r"in (\w+) of\s+step (\d+)")
LATE = re.compile(r"(\w+) of step (\d+) takes longer than its limit .* on rank (\d+) on (\S+), and no rank")
GUILTY = re.compile(r"rank (\d+)")
RAISED = re.compile(r"^(?:(\S+): )?(?:\[rank(\d+)\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)")
NO_CAUSE = re.compile(r"^SystemExit|^KeyboardInterrupt|ChildFailedError")
RETURNED = re.compile(r"^(?:(\S+): )?\[.*exits with return code = (-?\d+)")
ROOT_CAUSE = re.compile(r"Root Cause.*?\bhost +: (\S+).*?\brank +: (\d+).*?\bexitcode +: (-?\d+)", re.DOTALL)
NOT_REACHED = re.compile(
    r"^(?:pdsh@\S+: )?(\S+): (ssh exited with exit code 255|.*(?:Connection refused|No route to host|timed out|not resolve).*)"
)


@dataclass(frozen=True)
class Cause:
    """Why an attempt ended."""

    kind: str
    """One of `CLASSES`."""
    lines: tuple[str, ...]
    """What shows it, most telling first."""
    rank: int | None = None
    host: str = ""
    """As the hostfile names it, else as the rank itself did; "" where it is not known."""
    phase: str = ""
    step: int | None = None


def kind_of(text: str) -> str:
    """The class of what a rank said when it failed; network for what only another's end makes it say."""
    for kind, pattern in WORDS:
        if re.search(pattern, text):
            return kind
    return NETWORK if AFTER_ANOTHER.search(text) else ERROR


def find_cause(evidence: Evidence) -> Cause:
    """The first failure of an attempt. Never raises, whatever ranks and launchers left."""
    finders = (completed, asked, raised, crashed, hung, killed, refused, stopped, cut_off, silent, not_started)
    cause = next((found for finder in finders if (found := finder(evidence)) is not None), None)
    return located(evidence, cause or unknown(evidence))


def located(evidence: Evidence, cause: Cause) -> Cause:
    """With the host's name in the hostfile, and the phase and step that the rank's last sign of life tells."""
    sign = next((sign for sign in evidence.signs if sign.rank == cause.rank), None)
    host = evidence.name_of(cause.rank, cause.host or (sign.host if sign else ""))
    step, phase = cause.step, cause.phase
    if step is None:
        step = sign.step if sign else max((other.step for other in evidence.signs), default=evidence.run.get("step"))
    if not phase:
        phase = sign.phase if sign else "launch" if not evidence.signs else ""
    return replace(cause, host=host, phase=phase, step=step)


# ---- in the order in which they are asked --------------------------------------------------------------------------------------


def completed(evidence: Evidence) -> Cause | None:
    if evidence.run.get("status") == "completed":
        return Cause(COMPLETED, (f"run_status.json: completed at step {evidence.run.get('step')}",))
    return None


def asked(evidence: Evidence) -> Cause | None:
    if evidence.ended == "asked":
        return Cause(PREEMPTED, ("the supervisor was asked to stop",))
    return None


def raised(evidence: Evidence) -> Cause | None:
    """The earliest exception of a rank that no other rank's end explains."""
    for failure in evidence.failures:
        kind = DEVICE if failure.kind == "device" else kind_of(failure.message)
        died = WORKER.search(failure.message)
        if died and died[1] in (None, "Killed", "Terminated") or kind == NETWORK and "/multiprocessing/" in failure.through:
            kind = MEMORY if short_of_memory(evidence, failure.rank, failure.host) else KILLED
        if failure.kind == "hang" or kind == NETWORK:
            continue
        lines = (f"rank {failure.rank} on {failure.host}: {failure.message}", *memory_lines(evidence, kind))
        rank, host = failure.rank, failure.host
        if kind == DEVICE and (guilty := GUILTY.search(failure.message)):  # all ranks say which one it was
            rank = int(guilty[1])
            host = sign_host(evidence, rank) or host
        return Cause(kind, lines, rank, host, failure.phase, failure.step)
    if evidence.failures:
        return None
    trace = next((n for n, line in enumerate(evidence.said) if "Traceback (most recent call last)" in line), len(evidence.said))
    for line in evidence.said[trace:]:  # before ranks had met: nobody records that
        found = RAISED.match(line)
        if found and not NO_CAUSE.search(found[3]) and kind_of(found[3]) != NETWORK:
            return Cause(kind_of(found[3]), (line,), int(found[2]) if found[2] else None, found[1] or "")
    return None


def crashed(evidence: Evidence) -> Cause | None:
    """A rank that the processor stopped. Aborts come last: threads of collectives abort their process when a peer is gone."""
    ends = [end for end in evidence.ends if -end.status in CRASHES]
    for end in sorted(ends, key=lambda end: (-end.status == signal.SIGABRT, end.time)):
        if -end.status == signal.SIGABRT and any(other.status == -signal.SIGKILL for other in evidence.ends):
            continue
        lines = (f"rank {end.rank} on {end.host} crashed: {name_of(end.status)}", *fatal_lines(evidence))
        return Cause(ERROR, lines, end.rank, end.host)
    for rank, host, status in returned(evidence):
        if -status in CRASHES and -status != signal.SIGABRT:
            rank = missing(evidence, host) if rank is None else rank
            return Cause(ERROR, (f"a rank crashed: {name_of(status)}", *fatal_lines(evidence)), rank, host)
    if any(end.status == -signal.SIGKILL for end in evidence.ends):
        return None
    # nobody saw how it ended, but its last words, or the status that its launcher took over, tell
    status = evidence.status or 0
    words, number = fatal_lines(evidence), 256 - status if status > 192 else status - 128  # -11 as 245, or as a shell says it
    if number in CRASHES and number != signal.SIGABRT or words and "Aborted" not in words[0]:
        how = f": {name_of(-number)}" if number in CRASHES else ""
        return Cause(ERROR, (f"a rank crashed{how}", *words), missing(evidence, ""))
    return None


def hung(evidence: Evidence) -> Cause | None:
    """What the ranks' own watchdog found; the kernel's end of a rank before it explains the silence better."""
    told = [failure for failure in evidence.failures if failure.kind == "hang"]
    if not told:  # a full disk keeps the files, not the words
        found = [match for line in evidence.said if (match := SAID.match(line))]
        told = [Failure(int(match[1]), match[2], 0.0, "hang", match[3]) for match in found]
    if not told:
        return None
    accused = {failure.rank: guilty_of(failure)[0] for failure in told}
    # rank 0 hears all; of two that do not reach each other both speak, and neither is silent
    first = next((failure for failure in told if failure.rank == 0), told[0])
    rank, host, phase, step = guilty_of(first)
    if any(end.status == -signal.SIGKILL and end.time < first.time - 5 for end in evidence.ends):
        return None
    lines = (f"rank {first.rank} on {first.host}: {first.message}",)
    host = host or sign_host(evidence, rank)
    both_speak = accused.get(rank, rank) != rank
    if evidence.unreachable and (both_speak or evidence.name_of(rank, host) in evidence.unreachable):
        host = next((name for name in evidence.unreachable if name == evidence.name_of(rank, host)), evidence.unreachable[0])
        rank = rank if evidence.name_of(rank) == host else next(iter(ranks_of(evidence, host)), None)
        return Cause(NETWORK, (*lines, f"{host} is not reached by ssh either"), rank, host, phase, step)
    return Cause(NETWORK if both_speak else HANG, lines, rank, host, phase, step)


def ranks_of(evidence: Evidence, host: str) -> list[int]:
    return [rank for rank, name in enumerate(evidence.host_of_rank) if name == host]


def guilty_of(failure: Failure) -> tuple[int, str, str, int | None]:
    """(rank, host if it is told, phase, step) that a watchdog's words are about."""
    place, late = PLACE.search(failure.message), LATE.search(failure.message)
    phase, step = (place[1], int(place[2])) if place else (late[1], int(late[2])) if late else ("", None)
    if found := SILENT.search(failure.message):
        return int(found[1]), found[2] or "", phase, step
    if late:
        return int(late[3]), late[4], phase, step
    return failure.rank, failure.host, failure.phase, failure.step


def killed(evidence: Evidence) -> Cause | None:
    """A rank that was ended by a signal from outside, while others were not, or lost their connection to it."""
    deaths = sorted((end for end in evidence.ends if end.status in (-signal.SIGKILL, -signal.SIGTERM)), key=lambda end: end.time)
    candidates = [(end.rank, end.host, end.status) for end in deaths]
    candidates += [(rank, host, status) for rank, host, status in returned(evidence) if status == -signal.SIGKILL]
    if not candidates:
        return None
    rank, host, status = candidates[0]
    rank = missing(evidence, host) if rank is None else rank
    who = f"rank {rank}" if rank is not None else "a rank"
    host = sign_host(evidence, rank) or host  # torchrun says localhost
    kind = MEMORY if short_of_memory(evidence, rank, host) else KILLED
    return Cause(
        kind, (f"{who} on {host or 'some host'} was ended by {name_of(status)}", *memory_lines(evidence, kind)), rank, host
    )


def refused(evidence: Evidence) -> Cause | None:
    """Errors of the user end all ranks with one line and status 2; in the middle of a run, too: data, a disk."""
    hosts = "|".join(map(re.escape, evidence.host_of_rank))  # pdsh writes them before each line; compilers have such lines, too
    lines = [line for line in evidence.said if re.match(rf"(?:(?:{hosts}): )?error: ", line)]
    if not lines or evidence.status == EXIT_PREEMPTED:
        return None
    kind = kind_of(lines[0])
    return Cause(kind if kind in (DATA, DISK, DIVERGED, MEMORY) else USER, (lines[0],), 0)


def stopped(evidence: Evidence) -> Cause | None:
    """Saved and ended, since someone asked the ranks to, or since their launcher was gone."""
    if evidence.run.get("status") != "preempted" and evidence.status != EXIT_PREEMPTED:
        return None
    saved = f"run_status.json: preempted at step {evidence.run.get('step')}, checkpoint {evidence.run.get('checkpoint')}"
    if evidence.unreachable:
        host = evidence.unreachable[0]
        return Cause(NETWORK, (f"{host} is not reached by ssh, and the ranks lost their launcher", saved), None, host)
    gone = [line for line in (str(evidence.run.get("why")), *evidence.said) if LAUNCHER_GONE in line]
    # ended before its ranks had: then the supervisor asked these to save, unless they saw it first
    before = evidence.run.get("status") == "preempted" and evidence.status in (0, 128 + signal.SIGKILL)
    if before or gone and evidence.status not in ASKED:
        return Cause(KILLED, (*gone[:1], f"the launcher ended with status {evidence.status}", saved))
    return Cause(PREEMPTED, (saved,))


def silent(evidence: Evidence) -> Cause | None:
    """What the supervisor waited for in vain: nobody in the job was left to say who is silent."""
    if not evidence.ended:
        return None
    quiet = max(evidence.signs, key=lambda sign: (sign.silent, -sign.rank), default=None)
    rank, host = (quiet.rank, quiet.host) if quiet else (None, "")
    named = evidence.name_of(rank, host)
    unreached = named if named in evidence.unreachable else next(iter(evidence.unreachable), "")
    if unreached:
        rank = rank if unreached == named else None
        return Cause(NETWORK, (evidence.ended, f"{unreached} is not reached by ssh"), rank, unreached)
    return Cause(HANG, (evidence.ended,), rank, host)


def cut_off(evidence: Evidence) -> Cause | None:
    """Only complaints about others: the connection between them is what failed, or the rank that says nothing."""
    complaints = [failure for failure in evidence.failures if failure.kind != "hang"]
    if complaints:
        rank, first = missing(evidence, ""), complaints[0]
        lines = (f"rank {first.rank} on {first.host}: {first.message}",)
        if rank is None:
            return Cause(NETWORK, lines, first.rank, first.host)
        host = sign_host(evidence, rank)
        if evidence.name_of(rank, host) in evidence.unreachable or not HUNG_UP.search(first.message):
            return Cause(NETWORK, lines, rank, host)
        # its host closed the connection, as it does for a process that is gone
        kind = MEMORY if short_of_memory(evidence, rank, host) else KILLED
        said = (f"rank {rank} on {host} was gone without a word", *lines, *memory_lines(evidence, kind))
        return Cause(kind, said, rank, host)
    lines = [line for line in evidence.said if RAISED.match(line) and AFTER_ANOTHER.search(line)]
    return Cause(NETWORK, (lines[0],)) if lines and not evidence.ended else None


def not_started(evidence: Evidence) -> Cause | None:
    """The launcher did not get to a host."""
    for line in evidence.said:
        found = NOT_REACHED.match(line)
        if found and not evidence.signs:
            return Cause(NETWORK, (line,), None, found[1])
    if evidence.unreachable and not evidence.signs:
        host = evidence.unreachable[0]
        return Cause(NETWORK, (f"{host} is not reached by ssh",), None, host)
    return None


def unknown(evidence: Evidence) -> Cause:
    """Nobody said why: whoever was ended from outside does not."""
    last = tuple(evidence.said[-3:])
    if evidence.status is not None and (evidence.status > 128 or evidence.status <= 0):
        signalled = evidence.status > 128 and evidence.status - 128 in set(signal.Signals)
        how = name_of(128 - evidence.status) if signalled else f"status {evidence.status}"
        kind = MEMORY if short_of_memory(evidence, None, "") else KILLED
        return Cause(kind, (f"the command ended with {how}, and no rank said why", *memory_lines(evidence, kind), *last))
    return Cause(ERROR, (f"the command ended with status {evidence.status}, and no rank said why", *last))


# ---- parts of them ---------------------------------------------------------------------------------------------------------------


def returned(evidence: Evidence) -> list[tuple[int | None, str, int]]:
    """(rank if it is known, host, status) of ranks that launchers saw end."""
    found: list[tuple[int | None, str, int]] = []
    for host, rank, status in ROOT_CAUSE.findall("\n".join(evidence.said)):
        found.append((int(rank), host, int(status)))
    for line in evidence.said:
        if match := RETURNED.match(line):
            found.append((None, match[1] or "", int(match[2])))
    return found


def missing(evidence: Evidence, host: str) -> int | None:
    """The rank, of a host if that is known, that left no word while others did; of several the one that is silent longest."""
    spoke = {failure.rank for failure in evidence.failures}
    quiet = [sign for sign in evidence.signs if sign.rank not in spoke]
    quiet = [sign for sign in quiet if not host or host in (sign.host, evidence.name_of(sign.rank, sign.host))]
    return max(quiet, key=lambda sign: (sign.silent, -sign.rank)).rank if quiet else None


def sign_host(evidence: Evidence, rank: int | None) -> str:
    return next((sign.host for sign in evidence.signs if sign.rank == rank), "")


def short_of_memory(evidence: Evidence, rank: int | None, host: str) -> bool:
    """Whether the kernel killed something of the attempt for want of memory on a rank's host, which has been counted under its name
    in the hostfile, not that which the rank gives it; without a rank and a host, on any."""
    host = evidence.name_of(rank, host)
    if not host:
        return any(evidence.oom_kills.values())
    return evidence.oom_kills.get(host, 0) > 0 or (host not in evidence.oom_kills and evidence.oom_kills.get("", 0) > 0)


def memory_lines(evidence: Evidence, kind: str) -> tuple[str, ...]:
    counted = [f"{host or 'this machine'}: {n}" for host, n in sorted(evidence.oom_kills.items()) if n]
    return (f"processes killed by the kernel for want of memory: {', '.join(counted)}",) if kind == MEMORY and counted else ()


def fatal_lines(evidence: Evidence) -> tuple[str, ...]:
    """What Python's fault handler wrote: where the process was."""
    place = next((n for n, line in enumerate(evidence.said) if "Fatal Python error" in line), None)
    if place is None:
        return ()
    files = [line for line in evidence.said[place:] if re.search(r'File ".*", line \d+', line)]
    return (evidence.said[place], *files[:3])


def name_of(status: int) -> str:
    """A negative exit status as its signal."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
