"""The memory that large bodies share."""

import gc
import threading
import time

from data_pipeline.fetch.room import Room, Share


def test_a_room_is_never_overfull_and_serves_in_turn():
    room, order, most, lock = Room(100), [], [0, 0], threading.Lock()

    def hold(name: int, size: int) -> None:
        share = Share(room)
        assert share.take(size, time.monotonic() + 20)
        with lock:
            order.append(name)
            most[0] += share.taken
            most[1] = max(most)
        time.sleep(0.01)
        with lock:
            most[0] -= share.taken
        share.give_back()

    first = Share(room)
    assert first.take(1000, time.monotonic()), "what is larger than the room takes all of it"
    assert first.taken == 100
    threads = []
    for name in range(12):
        threads.append(threading.Thread(target=hold, args=(name, 60 if name % 3 else 30)))
        threads[-1].start()
        while len(room.queue) <= name:
            time.sleep(0.001)
    first.shrink(95)
    first.give_back()
    for thread in threads:
        thread.join()
    # Two of neighbouring turns may pass each other between taking and noting it.
    assert most[1] <= 100 and all(abs(place - name) <= 1 for place, name in enumerate(order))
    assert room.free == 100 and not room.queue


def test_who_waits_too_long_for_room_leaves_the_queue():
    room = Room(100)
    first, second, third = Share(room), Share(room), Share(room)
    assert first.take(60, time.monotonic())
    start = time.monotonic()
    assert not second.take(60, time.monotonic() + 0.2)
    assert 0.15 < time.monotonic() - start < 10
    assert third.take(40, time.monotonic()), "who gave up is not in the way"
    del first
    gc.collect()
    assert room.free == 60, "what is forgotten is given back"
