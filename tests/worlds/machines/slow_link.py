"""The cable between two hosts as a program: it carries every frame, as late as it is told to.

    python slow_link.py PID PID

Makes a network card eth0 in the network namespace of each process and reads seconds of delay, one way, from standard input, a
number a line. Ends with it. (The kernel's own way, netem, is a module that many machines lack.)
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import selectors
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0002, 0x1000, 0x40000000
FRAME = 65536


def card(pid: int) -> int:
    """A descriptor for the frames of a new eth0 in the network namespace of a process."""
    with open(f"/proc/{pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace of process {pid}")
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI))
    return handle


def carry(cards: list[int]) -> None:
    """Until standard input ends."""
    other, delay, late = dict(zip(cards, reversed(cards), strict=True)), 0.0, []
    waiting = selectors.DefaultSelector()
    for handle in (*cards, 0):
        waiting.register(handle, selectors.EVENT_READ)
    count = 0
    while True:
        until = None if not late else max(0.0, late[0][0] - time.monotonic())
        for key, _ in waiting.select(until):
            if key.fd == 0:
                words = os.read(0, 100).split()
                if not words:
                    return
                delay = float(words[-1])
                continue
            try:
                frame = os.read(key.fd, FRAME)
            except BlockingIOError:
                continue
            count += 1
            heapq.heappush(late, (time.monotonic() + delay, count, other[key.fd], frame))
        while late and late[0][0] <= time.monotonic():
            _, _, handle, frame = heapq.heappop(late)
            try:
                os.write(handle, frame)
            except OSError:  # the card is down: a cable carries nothing to it
                pass


if __name__ == "__main__":
    carry([card(int(pid)) for pid in sys.argv[1:]])
