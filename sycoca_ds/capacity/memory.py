"""The highest moment of a training step, by part: the forward pass adds up what it keeps, the backward pass gives it back piece by
piece while gradients grow, then the update has its own. The largest of all these moments is what a GPU must hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sycoca_ds.capacity.gathering import live_weights
from sycoca_ds.capacity.step import Step

LINES = ("weights", "gradients", "optimizer", "live and buckets", "activations", "logits", "contrast", "other")
"""The report's lines, in order; the last is the batch itself, and what is no tensor of the run."""


@dataclass(frozen=True)
class Peak:
    """Bytes by line at the moment when their sum is largest."""

    parts: dict[str, int]
    moment: str
    host: int
    """Host memory a rank, for offloading."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def moments(step: Step) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(what happens, bytes in the order of LINES) at each moment of a step that may be the highest."""
    engine, pieces = step.engine, step.pieces
    k, b = step.batches.accumulation_steps, step.batches.micro_batch_size
    rest, (forward, backward) = engine.at_rest(), live_weights(step)
    # of all micro-batches: pixels as bytes, token ids; the features and slopes of several
    batch = k * b * (3 * step.model.image.image_size**2 + 8 * step.model.text.context_length)
    other = step.framework + batch + 16 * k * b * step.model.embed_dim * (k > 1)
    optimizer = rest.optimizer + (rest.host if step.cpu else 0)

    def at(gradients: int, live: int, buckets: int, kept: Sequence[int]) -> tuple[int, ...]:
        return (rest.weights, rest.gradients + gradients, optimizer, live + rest.buckets + buckets, *kept, other)

    if k > 1:  # both encoders without gradient, then the contrast of all micro-batches
        yield "contrast of all micro-batches", at(0, max(backward), 0, (0, 0, 6 * 4 * k * b * step.batches.global_batch_size))
    kept, kinds = [0, 0, 0], {"activations": 0, "logits": 1, "contrast": 2}
    early = engine.in_backward(0, 0, k - 1)[0] if k > 1 else 0
    for number, piece in enumerate(pieces):
        kind = kinds[piece.kind]
        kept[kind] += piece.kept + piece.in_forward
        yield f"forward, {piece.part}, {piece.what}", at(early, forward[number], 0, kept)
        kept[kind] -= piece.in_forward
    first_use = {piece.weights: number for number, piece in reversed([*enumerate(pieces)])}
    done, pending, waiting = 0, 0, dict.fromkeys(first_use, 0)
    for number, piece in reversed([*enumerate(pieces)]):
        if piece.weights:
            pending += piece.numbers - waiting[piece.weights]
            waiting[piece.weights] = piece.numbers
        gradients, buckets = engine.in_backward(done, pending, k - 1)
        kind = kinds[piece.kind]
        kept[kind] += piece.in_backward
        yield f"backward, {piece.part}, {piece.what}", at(gradients, backward[number], buckets, kept)
        kept[kind] -= piece.in_backward + piece.kept
        if first_use[piece.weights] == number:
            done += waiting[piece.weights]
            pending -= waiting.pop(piece.weights)
    gradients, buckets = engine.in_update()
    yield "update", at(gradients, 0, buckets, kept)


def peak(step: Step) -> Peak:
    """The highest moment."""
    what, numbers = max(moments(step), key=lambda found: sum(found[1]))
    return Peak(dict(zip(LINES, numbers, strict=True)), what, 0 if step.cpu else step.engine.at_rest().host)
