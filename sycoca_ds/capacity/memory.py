"""The highest moment of a training step, by part: the forward pass adds up what it keeps, the backward pass gives it back piece by
piece while gradients grow, then the update has its own. The largest of all these moments is what a GPU must hold."""

from __future__ import annotations

from collections.abc import Iterator
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


def moments(step: Step) -> Iterator[tuple[str, dict[str, int]]]:
    """(what happens, bytes by line) at each moment of a step that may be the highest."""
    engine, sharding, pieces = step.engine, step.sharding, step.pieces
    k, b = step.batches.accumulation_steps, step.batches.micro_batch_size
    rest = engine.at_rest()
    forward, backward = live_weights(step)
    # of all micro-batches: pixels as bytes, token ids; the features and slopes of several
    batch = k * b * (3 * step.model.image.image_size**2 + 8 * step.model.text.context_length)
    batch += 16 * k * b * step.model.embed_dim * (k > 1)
    bucket = sharding.reduce_bucket
    touched = min(1.0, engine.total / bucket) if step.cpu else 1.0
    base = {
        "weights": rest.weights,
        "gradients": rest.gradients,
        "optimizer": rest.optimizer + (rest.host if step.cpu else 0),
        "live and buckets": int(rest.buckets * touched),
        "other": step.framework + batch,
    }

    def at(what: str, **more: int) -> tuple[str, dict[str, int]]:
        found = {line: base.get(line, 0) + more.get(line.replace(" ", "_"), 0) for line in LINES}
        return what, found

    if k > 1:  # both encoders without gradient, then the contrast of all micro-batches
        local = 2 * 4 * k * b * step.batches.global_batch_size
        yield at("contrast of all micro-batches", live_and_buckets=max(backward), contrast=3 * local)
    sums = {"activations": 0, "logits": 0, "contrast": 0}
    last = max(k - 1, 0)
    early, _ = engine.in_backward(0, 0, last) if last else (0, 0)
    for number, piece in enumerate(pieces):
        sums[piece.kind] += piece.kept
        now = {**sums, piece.kind: sums[piece.kind] + piece.in_forward}
        yield at(f"forward, {piece.part}, {piece.what}", live_and_buckets=forward[number], gradients=early, **now)
    waiting = {piece.weights: piece.numbers for piece in pieces}
    uses = [piece.weights for piece in pieces]
    done, pending, begun = 0, {}, set()
    for number in range(len(pieces) - 1, -1, -1):
        piece = pieces[number]
        if piece.weights and piece.weights not in begun:
            begun.add(piece.weights)
            pending[piece.weights] = waiting[piece.weights]
        gradients, own = engine.in_backward(done, sum(pending.values()), last)
        now = {**sums, piece.kind: sums[piece.kind] + piece.in_backward}
        own = backward[number] + int(own * touched)
        yield at(f"backward, {piece.part}, {piece.what}", live_and_buckets=own, gradients=gradients, **now)
        sums[piece.kind] -= piece.kept
        if piece.weights and piece.weights not in uses[:number]:
            done += pending.pop(piece.weights)
    gradients, own = engine.in_update()
    yield at("update", live_and_buckets=int(own * touched), gradients=gradients)


def peak(step: Step) -> Peak:
    """The highest moment."""
    what, parts = max(moments(step), key=lambda found: sum(found[1].values()))
    return Peak(parts, what, 0 if step.cpu else step.engine.at_rest().host)
