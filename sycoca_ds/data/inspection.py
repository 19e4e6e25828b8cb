"""A look at what a run would be fed: counts, the order's arithmetic, the pictures of one global batch, this machine's speed.

python -m sycoca_ds.data inspect /data/cc12m /data/coyo --weights 0.3 0.7 --global-batch-size 2048 --out batch.png
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.files import atomic_path
from sycoca_ds.config import DataConfig, OptimConfig, TextEncoderConfig
from sycoca_ds.data.loader import TrainSet
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation, load_image

SHOWN = 64
"""Pictures on the sheet."""
TILE, LINES, COLUMNS = 160, 3, 8


def inspect(
    data: Sequence[str],
    weights: Sequence[float],
    global_batch_size: int | None,
    lanes: int | None,
    window: int,
    seed: int,
    step: int,
    image_size: int,
    crop_scale: tuple[float, float],
    tokenizer: str | None,
    cache: str | None,
    cache_gib: float,
    samples_per_second: float,
    seconds: float,
    out: Path | None,
) -> None:
    """Prints what a run would be fed; writes the sheet. Arguments are `sycoca_ds.data.command.InspectCommand`'s fields.

    Raises:
        UserError: no folder, a damaged one, numbers that do not go together.
    """
    if not data:
        raise UserError("expected at least one data set folder")
    sources = Sources.of(DataConfig(train=data, cache=cache, cache_gib=cache_gib))
    pairs = global_batch_size or min(OptimConfig.global_batch_size, largest_power(sources.samples))
    plan = Plan(
        sources.kept,
        weights=weights or None,
        global_batch_size=pairs,
        lanes=lanes or math.gcd(DataConfig.lanes, pairs),
        window=window,
        seed=seed,
    )
    if step < 0:
        raise UserError(f"--step {step}: expected a step from 0")
    known = Tokenizer(tokenizer or sources.manifests[0].root / "tokenizer.json")
    augmentation = Augmentation(image_size, crop_scale)
    dataset = TrainSet(sources, plan, known, augmentation=augmentation, context_length=TextEncoderConfig.context_length)
    print("\n".join(describe(sources, plan, step)), flush=True)
    if out is not None:
        write_sheet(out, dataset, step)
        print(f"{out}: the first {min(SHOWN, pairs)} of the batch of step {step}", flush=True)
    print("\n".join(speed(dataset, step, seconds, samples_per_second)), flush=True)


def largest_power(count: int) -> int:
    """The largest power of two that is not above `count`, at least 1."""
    return 1 << max(0, count.bit_length() - 1)


def describe(sources: Sources, plan: Plan, step: int) -> list[str]:
    """Counts of every source and the arithmetic of the order, as lines."""
    lines = []
    parts = zip(sources.manifests, sources.urls, plan.sources, plan.lanes_of, strict=True)
    for number, (manifest, url, source, own) in enumerate(parts, 1):
        lines.append(
            f"source {number}: {url or manifest.root}: {len(manifest.shards)} shards, {manifest.bytes / 1e9:.3g} GB, "
            f"{manifest.samples} samples, {manifest.samples - manifest.kept} of them left out (keep = false)"
        )
        lines.append(
            f"  {own / plan.lanes:.2%} = {own * plan.per_step} of every {plan.global_batch_size} pairs; an epoch of its own has "
            f"{source.steps_per_epoch} steps and leaves over {source.samples - source.steps_per_epoch * own * plan.per_step} "
            f"samples; before step {step}: {plan.epochs(step)[number - 1]:.2f} epochs"
        )
    worlds = [world for world in range(1, plan.lanes + 1) if plan.lanes % world == 0]
    lines.append(
        f"order: {plan.lanes} lanes, {plan.per_step} samples of each a step, windows of {plan.window}; {plan.steps_per_epoch} "
        f"steps an epoch; the same batches on {', '.join(map(str, worlds))} ranks"
    )
    return lines


def write_sheet(path: Path, dataset: TrainSet, step: int) -> None:
    """The first pictures of a global batch as the model gets them, each with the words its tokenizer keeps of the caption."""
    from PIL import Image, ImageDraw

    epochs, samples = (values[:SHOWN].tolist() for values in dataset.plan.batch(step))
    batch, tokenizer = dataset.__getitems__(list(zip(epochs, samples, strict=True))), Tokenizer(dataset.tokenizer_path)
    image_BCHW = batch.to_device(torch.device("cpu"), dataset.augmentation.size)["image_BCHW"]
    height = TILE + 12 * LINES + 8
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(samples) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, ids) in enumerate(zip(image_BCHW, batch.text_BL.tolist(), strict=True)):
        left, top = number % COLUMNS * TILE, number // COLUMNS * height
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((TILE - 4, TILE - 4))
        sheet.paste(tile, (left + 2, top + 2))
        for line, words in enumerate(wrapped(tokenizer.decode(ids), TILE - 6, draw.textlength)):
            draw.text((left + 3, top + TILE + 12 * line), words, fill="black")
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def wrapped(text: str, width: float, length_of) -> list[str]:
    """The text in at most `LINES` lines of a width in pixels; the last ends in ".." if something is left."""
    lines, words = [""], text.encode("ascii", "replace").decode().split()
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if length_of(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < LINES:
            lines.append(word)
        else:
            lines[-1] += " .." if number < len(words) else ""
            break
    return lines


def rate(run, seconds: float) -> float:
    """Samples a second of `run`, which does some and returns how many; the first call is not counted."""
    run()
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        done += run()
    return done / spent


def speed(dataset: TrainSet, step: int, seconds: float, wanted: float) -> list[str]:
    """What one loader process does a second here, its share of the pure decoding rate, and how many processes feed `wanted`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    try:
        epochs, samples = dataset.plan.batch(step)
        pairs = list(zip(epochs.tolist(), samples.tolist(), strict=True))[:256]
        place = dataset.plan.locate(np.array([sample for _, sample in pairs]))
        encoded = [dataset.reader.read(int(shard), int(position))[0] for shard, position in zip(*place, strict=True)]
        at_least = dataset.augmentation.size

        def decode() -> int:
            for data in encoded[:32]:
                load_image(data, at_least=at_least)
            return len(encoded[:32])

        def feed() -> int:
            return len(dataset.__getitems__(pairs[:32]).key_B)

        # in turns, so that a machine that slows down slows both
        turns = [(rate(decode, seconds / 8), rate(feed, seconds / 8)) for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
    decoding, feeding = (float(np.median(values)) for values in zip(*turns, strict=True))
    kilobytes = sum(map(len, encoded)) / len(encoded) / 1e3
    return [
        f"speed: {feeding:,.0f} pictures a second in one process ({kilobytes:.1f} kB each; {feeding / decoding:.0%} of decoding "
        f"alone, {decoding:,.0f}); {wanted:g} samples a second take {-(-wanted // feeding):.0f} loader processes"
    ]
