"""ZeRO stage 3: which weights are whole when, and how often each is gathered."""

from __future__ import annotations

from dataclasses import dataclass

from sycoca_ds.capacity.pieces import Piece
from sycoca_ds.capacity.states import Sharding
from sycoca_ds.capacity.step import Step


@dataclass(frozen=True)
class Gathers:
    """Stage 3's whole weights in one micro-batch, in numbers."""

    gathered: int
    """By all its all-gathers."""
    forward: list[int]
    """Whole while each piece runs; also copies that the coordinator has let go and autograd still refers to."""
    backward: list[int]
    """Whole while each piece's backward pass runs, by the piece's number in the forward pass."""


def gathers(pieces: list[Piece], sharding: Sharding, traced: bool) -> Gathers:
    """Plays DeepSpeed's coordinator.

    It keeps a weight after its use if it is used again before `reuse_distance` other weights. It knows that of a micro-batch that
    runs like the one before (`traced`), not where calls without gradient stand between. torch's linear layers keep a view of the
    weight they used for their backward pass (`memory_efficient_linear` is off), so what is gathered anew later is there twice.
    """
    order = [(number, False) for number, piece in enumerate(pieces) if piece.weights]
    order += [(n, True) for n, _ in reversed(order) for _ in range(1 + pieces[n].recomputed)]
    behind = [0]  # weights that went by before each use
    for number, _ in order:
        behind.append(behind[-1] + pieces[number].numbers)
    following: dict[str, int] = {}
    keeps = [False] * len(order)
    for at in range(len(order) - 1, -1, -1):
        name = pieces[order[at][0]].weights
        then = following.get(name)
        computed_again = order[at + 1 : at + 2] == [order[at]]  # in the middle of its backward pass, for which it is whole
        near = traced and then is not None and behind[then] - behind[at + 1] < sharding.reuse_distance
        keeps[at] = computed_again or near
        following[name] = at
    gathered = whole = 0
    forward, backward = [0] * len(pieces), [0] * len(pieces)
    held: dict[str, int] = {}  # name -> copy that the coordinator holds
    users: list[int] = []  # of each copy: the coordinator, and pieces whose graph refers to it
    refers: dict[int, int] = {}  # piece -> copy

    def release(copy: int, numbers: int) -> int:
        users[copy] -= 1
        return numbers if not users[copy] else 0

    for at, (number, is_backward) in enumerate(order):
        piece = pieces[number]
        if piece.weights not in held:
            gathered += piece.numbers
            whole += piece.numbers
            held[piece.weights] = len(users)
            users.append(1)
        copy = held[piece.weights]
        if not is_backward and not piece.recomputed:
            refers[number] = copy
            users[copy] += 1
        side = backward if is_backward else forward
        side[number] = max(side[number], whole)
        if is_backward and number in refers:
            whole -= release(refers.pop(number), piece.numbers)
        if not keeps[at]:
            whole -= release(held.pop(piece.weights), piece.numbers)
    return Gathers(gathered, forward, backward)


def live_weights(step: Step) -> tuple[list[int], list[int]]:
    """Bytes of weights that are whole on top of what is at rest, for each piece: (in the forward pass, in the backward pass)."""
    pieces, sharding, engine = step.pieces, step.sharding, step.engine
    if sharding.stage != 3 or engine.ranks == 1:
        return [0] * len(pieces), [0] * len(pieces)
    traced = step.batches.accumulation_steps == 1
    found = gathers(pieces, sharding, traced)
    ahead = sharding.prefetch if traced else 0
    forward = [whole + ahead for whole in found.forward]
    if traced and sharding.reuse_distance >= 2 * engine.total:  # each module's fetch asks for the next ones: soon all are there
        forward = [engine.total] * len(pieces)
    backward = [min(engine.total, whole + ahead) if traced else whole for whole in found.backward]
    # where a piece has no weights, those of the piece before it are still there
    for number in range(1, len(pieces)):
        if not pieces[number].weights:
            forward[number] = forward[number - 1]
    for number in reversed(range(len(pieces) - 1)):
        if not pieces[number].weights:
            backward[number] = backward[number + 1]
    return [sharding.weight_bytes * n for n in forward], [sharding.weight_bytes * n for n in backward]
