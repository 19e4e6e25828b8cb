"""How the ranks of a launch meet: on a store, where rank 0 hears who has come before a process group is made.

Left to torch, ranks wait half an hour for a host that never comes, without a word, and take those of another launch on the same
port for their own. Here the missing ones are named, and what does not fit is refused by all ranks at once, in one line.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.errors import UserError, one_line
from data_pipeline.files import write_bytes
from sycoca_ds.engine.ranks.launcher import find_launcher, in_words

LIMIT_SECONDS = 600.0
"""How long ranks wait for each other: imports of hundreds of ranks from one file system take minutes."""
SAID_SECONDS = 20.0
"""After so long, and then again, it is said what is being waited for."""
JOIN_SECONDS, POLL_SECONDS = 60.0, 0.1
LOOK = "`python -m sycoca_ds.launch check --hostfile FILE` looks for the cause"


class Refusal(UserError):
    """Every rank that came has it, in rank 0's words."""

    said_by_rank_0 = True


@dataclass(frozen=True)
class Arrival:
    """What a rank tells rank 0 about itself."""

    rank: int
    host: str
    """Its machine's own name."""
    world_size: int
    plan: dict[str, list[int]]
    """`Launcher.plan`; empty under other launchers."""
    unreachable: str
    """Why no other machine reaches this one's gloo; empty if nothing speaks against it."""


def meet(backend: str, device: torch.device, timeout: timedelta, limit: float = LIMIT_SECONDS) -> tuple[str, ...]:
    """Makes the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; returns the machine of every rank.

    A launch on one machine by `deepspeed` without --master_port meets on a port that the system chooses, and puts it into
    MASTER_PORT: the launcher's default, 29500, is that of every other launch.

    Raises:
        UserError: on every rank that came, when one is missing after `limit` seconds, when they were told different things, when
            another launch has the port, or when gloo would listen where no other machine reaches it.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    launcher, until = find_launcher(), time.monotonic() + limit
    note = None
    if launcher is not None and os.environ.get("CROSS_SIZE") == "1" and not launcher.port_given:
        note = Path(tempfile.gettempdir()) / f"sycoca_ds_{os.getuid()}_{launcher.pid}_{launcher.began}"
        server = _store_of_one_machine(note, rank, world_size, until)
        os.environ["MASTER_PORT"] = str(server.port)
    else:
        server = _store_at_master(rank, world_size, until)
    store: dist.Store = server
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's own, which outlives a restart of the ranks
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)
    own = Arrival(rank, socket.gethostname(), world_size, launcher.plan if launcher else {}, _unreachable(backend))
    meeting = dist.PrefixStore("meeting", store)
    try:
        hosts = _receive(meeting, own, until) if rank == 0 else _report(meeting, own, until)
    except dist.DistError as error:
        raise UserError(f"rank 0 was gone before all ranks had met ({one_line(error)}): what it said last is the reason") from error
    finally:
        if rank == 0 and note is not None:
            note.unlink(missing_ok=True)
    server.set_timeout(timeout)
    options = {"device_id": device} if device.type == "cuda" and world_size > 1 else {}  # as DeepSpeed does
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout, **options)
    return hosts


def _store_of_one_machine(note: Path, rank: int, world_size: int, until: float) -> dist.TCPStore:
    """Rank 0 listens before it tells the others, by a file that has the launch's name: no moment at which another could take the
    port."""
    if rank == 0:
        store = _listen(0, world_size, until)
        write_bytes(note, str(store.port).encode())
        return store
    while not note.is_file():  # if rank 0 ends before it is written, the launcher ends this rank, too
        if time.monotonic() > until:
            raise TimeoutError("the ranks of this machine did not meet in time")
        time.sleep(POLL_SECONDS)
    if note.stat().st_uid != os.getuid():
        raise UserError(f"{note} belongs to another user: delete it, or choose a port with `deepspeed --master_port`")
    return _join("127.0.0.1", int(note.read_text()), world_size)


def _store_at_master(rank: int, world_size: int, until: float) -> dist.TCPStore:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store = _listen(port, world_size, until)
        os.environ["MASTER_PORT"] = str(store.port)
        return store
    reason, said = _attempt(address, port), time.monotonic() + SAID_SECONDS
    while reason:
        text = (
            f"rank {rank} on {socket.gethostname()} does not reach rank 0 at {address}:{port} (MASTER_ADDR:MASTER_PORT): {reason}"
        )
        if time.monotonic() > until:
            raise UserError(f"{text}; {LOOK}")
        if time.monotonic() > said:
            if os.environ["LOCAL_RANK"] == "0":
                print(text, flush=True)
            said += SAID_SECONDS
        time.sleep(POLL_SECONDS)
        reason = _attempt(address, port)
    return _join(address, port, world_size)


def _join(address: str, port: int, world_size: int) -> dist.TCPStore:
    """In a thread of its own: torch waits for the first answer of what listens there without end, whatever timeout it is given, and
    another program may never give one."""
    found: list[dist.TCPStore | dist.DistError] = []

    def connect() -> None:
        try:
            found.append(dist.TCPStore(address, port, world_size, is_master=False, timeout=timedelta(seconds=JOIN_SECONDS)))
        except dist.DistError as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(JOIN_SECONDS + 1)
    if not found or isinstance(found[0], dist.DistError):
        reason = one_line(found[0]) if found else "it says nothing"
        raise UserError(
            f"{address}:{port} answers, but not as rank 0 does ({reason}): another program has the port, give the launch another "
            "--master_port"
        )
    return found[0]


def _listen(port: int, world_size: int, until: float) -> dist.TCPStore:
    """Rank 0's own end goes over loopback: MASTER_ADDR is what the others see, perhaps through a translation of addresses."""
    try:
        return dist.TCPStore("127.0.0.1", port, world_size, is_master=True, timeout=_left(until), wait_for_workers=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(f"port {port} is taken: give another one to the launcher (--master_port), or leave it out") from error


def _attempt(address: str, port: int) -> str:
    """Why nothing answers there; empty if something does."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return str(error)
    return ""


def _left(until: float) -> timedelta:
    return timedelta(seconds=max(1.0, until - time.monotonic()))


def _unreachable(backend: str) -> str:
    """gloo listens at the address of the machine's own name, which Debian's installer makes 127.0.1.1. NCCL looks for itself."""
    if backend != "gloo" or os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0]
        if not ipaddress.ip_address(found.split("%")[0]).is_loopback:
            return ""
    except OSError:
        found = "no address, and gloo then takes 127.0.0.1"
    return (
        f"its own name resolves to {found}, where no other host reaches it: write GLOO_SOCKET_IFNAME={_interface()} into "
        ".deepspeed_env (with other launchers: into the environment), or mend /etc/hosts"
    )


def _interface() -> str:
    """The network interface on the way to rank 0."""
    import psutil

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((os.environ["MASTER_ADDR"], 1))  # sends nothing
        for name, addresses in psutil.net_if_addrs().items():
            if name != "lo" and way.getsockname()[0] in [address.address for address in addresses]:
                return name
    return "NAME (of the interface to the others: `ip -br addr`)"


def _receive(store: dist.Store, own: Arrival, until: float) -> tuple[str, ...]:
    """Rank 0's part: hears all, judges, tells them."""
    here, heard, said, reason = {0: own}, 0, time.monotonic() + SAID_SECONDS, ""
    while not reason and len(here) < own.world_size:
        for number in range(heard + 1, store.add("arrivals", 0) + 1):
            other, heard = Arrival(**json.loads(store.get(f"arrival {number}"))), number
            reason = reason or misfit(own, other, here.get(other.rank))
            here.setdefault(other.rank, other)
        if len(here) < own.world_size and not reason:
            waiting = f"{len(here)} of {own.world_size} ranks have come, missing: {missing(own, set(here))}"
            if time.monotonic() > until:
                reason = f"{waiting}; {LOOK}"
            if time.monotonic() > said:
                print(waiting, flush=True)
                said += SAID_SECONDS
            time.sleep(POLL_SECONDS)
    if not reason and len({other.host for other in here.values()}) > 1:
        reason = next((f"{other.host}: {other.unreachable}" for other in here.values() if other.unreachable), "")
    hosts = [here[rank].host for rank in sorted(here)]
    store.set("verdict", json.dumps([reason, hosts]))
    if reason:  # with this process the store goes, and the others would never know
        end = time.monotonic() + 5
        while store.add("listeners", 0) < heard and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        raise Refusal(reason)
    return tuple(hosts)


def _report(store: dist.Store, own: Arrival, until: float) -> tuple[str, ...]:
    """The others' part: tell rank 0, wait for what it says."""
    if store.check(["verdict"]):
        raise UserError(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} is the port of another launch, whose ranks have all met: "
            "give one of the two another --master_port"
        )
    store.set(f"arrival {store.add('arrivals', 1)}", json.dumps(asdict(own)))
    while not store.check(["verdict"]):
        if time.monotonic() > until + 2 * SAID_SECONDS:
            raise UserError(f"rank {own.rank} on {own.host}: rank 0 has the store open but says nothing; {LOOK}")
        time.sleep(POLL_SECONDS)
    reason, hosts = json.loads(store.get("verdict"))
    store.add("listeners", 1)
    if reason:
        raise Refusal(reason)
    return tuple(hosts)


def misfit(own: Arrival, other: Arrival, before: Arrival | None) -> str:
    """Why `other` cannot belong to the launch of rank 0, `own`; empty if it can. `before` has come with the same rank."""
    whose = f"rank {other.rank} on {other.host}"
    if own.plan != other.plan:
        return (
            f"{whose} was launched for {in_words(other.plan)}, rank 0 on {own.host} for {in_words(own.plan)}: "
            "start both with the same hostfile and the same filters, or, if they are two launches, with another --master_port each"
        )
    if own.world_size != other.world_size:
        return (
            f"{whose} was told of {other.world_size} ranks, rank 0 on {own.host} of {own.world_size}: start all with the same "
            "number of nodes and of ranks on each"
        )
    if before is not None:
        return (
            f"rank {other.rank} came twice, from {other.host} and from {before.host}: give every node a --node_rank of its "
            "own, or, if these are two launches, another --master_port each"
        )
    return ""


def missing(own: Arrival, here: set[int]) -> str:
    """The ranks that are not `here`, with the hosts they were planned on."""
    plan, parts, first = own.plan or {"": range(own.world_size)}, [], 0
    for host, places in plan.items():
        gone = set(range(first, first + len(places))) - here
        first += len(places)
        if gone:
            parts.append(f"rank{'s' * (len(gone) > 1)} {ranges(gone)}" + (f" of {host}" if host else ""))
    return ", ".join(parts)


def ranges(numbers: set[int]) -> str:
    """{0, 1, 2, 5} -> "0-2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
