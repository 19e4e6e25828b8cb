"""From a host's name to addresses that may be connected to."""

from __future__ import annotations

import queue
import socket
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from data_pipeline.catalogue.hosts import is_public_address
from data_pipeline.fetch.limits import Clock, Limits
from data_pipeline.fetch.urls import Url
from data_pipeline.pictures.headers import FetchError

IDLE_SECONDS = 30.0
"""After which a thread that nobody needs ends."""
MOST_LOOKUPS = 512
"""At the same time, of a process. 32 connections whose names all take 160 s under a timeout of 10 s."""


class Resolver:
    """Looks names up beside each other: `socket.getaddrinfo` cannot be ended, and takes 10 to 30 s where a name's servers do not
    answer. In a pool of as many threads as there are connections the living queue behind the dead. Here who finds no idle thread
    starts one. They are daemons, so that no process waits for the dead when it ends."""

    def __init__(self, most: int):
        self._places, self._lock = threading.Semaphore(most), threading.Lock()
        self._running: dict[tuple[str, int], Future] = {}
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def look_up(self, host: str, port: int, clock: Clock) -> list[tuple]:
        """What `socket.getaddrinfo` returns for TCP. Raises `FetchError`: name not found, timeout. Waiting for a place is not
        counted. Who asks for a name that is being looked up waits with the other."""
        try:
            return (self._running.get((host, port)) or self._start(host, port, clock)).result(clock.left())
        except FutureTimeout:
            raise FetchError("timeout") from None
        except (OSError, UnicodeError):
            raise FetchError("name not found") from None

    def _start(self, host: str, port: int, clock: Clock) -> Future:
        with clock.stopped() as longest:
            if not self._places.acquire(timeout=longest):
                raise FetchError("timeout")
        job: Future = Future()
        with self._lock:
            self._running[host, port] = job
        if not self._idle.acquire(blocking=False):
            try:
                threading.Thread(target=self._work, name="resolve", daemon=True).start()
            except RuntimeError as error:  # the system has no thread left
                job.set_exception(OSError(str(error)))  # for those who have joined
                self._end(host, port, job)
                raise FetchError("connection failed", transient=True) from None
        self._jobs.put((host, port, job))
        return job

    def _work(self) -> None:
        while True:
            try:
                host, port, job = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._idle.acquire(blocking=False):
                    return
                continue  # somebody counts on this thread
            try:
                job.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except BaseException as error:
                job.set_exception(error)
            self._idle.release()
            self._end(host, port, job)

    def _end(self, host: str, port: int, job: Future) -> None:
        with self._lock:
            if self._running.get((host, port)) is job:
                del self._running[host, port]
        self._places.release()


RESOLVER = Resolver(MOST_LOOKUPS)


def addresses_of(url: Url, limits: Limits, clock: Clock) -> list[tuple]:
    """`socket.getaddrinfo`'s entries of a host that may be connected to. All of them must be public: one private address among
    public ones is how rebinding looks. Raises `FetchError`: name not found, timeout, private address refused."""
    if url.is_address:  # no name to look up, hence nothing to wait for
        try:
            found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except OSError:
            raise FetchError("name not found") from None
    else:
        found = RESOLVER.look_up(url.host, url.port, clock)
    if url.place not in limits.allowed_hosts and not all(is_public_address(entry[4][0]) for entry in found):
        raise FetchError("private address refused")
    return found
