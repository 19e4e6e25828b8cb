"""A bound on what many threads of a process hold together."""

from __future__ import annotations

import threading
import time
from collections import deque


class Room:
    """So many bytes, handed out in the order in which they are asked for."""

    def __init__(self, size: int):
        self.size = self.free = size
        self.changed = threading.Condition()
        self.queue: deque[Share] = deque()


class Share:
    """One holder's part of a room: taken once, in one piece, so that no two holders can wait for each other. Given back at the
    latest when it is forgotten."""

    def __init__(self, room: Room):
        self._room, self.taken = room, 0

    def take(self, size: int, deadline: float) -> bool:
        """Waits for its turn until `deadline` (time.monotonic()); False: it did not come. What is larger than the whole room takes
        that."""
        size, room = min(size, self._room.size), self._room
        with room.changed:
            room.queue.append(self)
            try:
                while room.queue[0] is not self or room.free < size:
                    if not room.changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                        return False
                room.free -= size
                self.taken = size
                return True
            finally:
                room.queue.remove(self)
                room.changed.notify_all()

    def shrink(self, size: int) -> None:
        """Gives back what is not needed after all."""
        if size < self.taken:
            with self._room.changed:
                self._room.free += self.taken - size
                self.taken = size
                self._room.changed.notify_all()

    def give_back(self) -> None:
        self.shrink(0)

    def __del__(self) -> None:
        self.give_back()
