"""The plan as text."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence

from data_pipeline.command_line import give_help_texts
from data_pipeline.progress import format_seconds
from sycoca_ds.capacity.machines import GIB, Assumptions, Machine
from sycoca_ds.capacity.memory import LINES, moments
from sycoca_ds.capacity.parameters import numel, parts
from sycoca_ds.capacity.search import Configuration
from sycoca_ds.config import ModelConfig

HEADS = {"live and buckets": "live+buckets", "gradients": "grads", "optimizer": "AdamW"}
WIDTH = 130
"""Columns for running text."""


def gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def rate(samples: float) -> str:
    return f"{samples:,.0f}" if samples >= 100 else f"{samples:.3g}"


def name_of(one: Configuration) -> str:
    return one.name.removeprefix("ds_configs/").removesuffix(".json")


def columns(rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines of equally wide columns, the first `left` of them to the left."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]

    def cell(text: str, n: int) -> str:
        return text.ljust(widths[n]) if n < left else text.rjust(widths[n])

    return ["  ".join(cell(text, n) for n, text in enumerate(row)).rstrip() for row in rows]


def heading(model: ModelConfig, machine: Machine, hosts: str) -> list[str]:
    """The model and the machine."""
    found = {name: numel(part.shapes()) for name, part in parts(model).items()}
    counts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in found.items() if count > 1)
    gpu, between = machine.gpu, f"; {machine.fabric_gbps:g} Gb/s a node" if machine.nodes > 1 else ""
    return [
        f"model: {model.family}, {sum(found.values()) / 1e6:.1f} M parameters ({counts})",
        f"machine: {hosts}, {machine.nodes} x {machine.gpus_per_node} {machine.name}; {gpu.memory_gib:.1f} GiB each, "
        f"{gib(machine.usable)} of them to fill; {gpu.tflops:g} TFLOP/s{between}",
    ]


def memory_table(configurations: Iterable[Configuration]) -> list[str]:
    """Memory by part for every policy and choice, with the largest micro-batch."""
    configurations = list(configurations)
    heads = HEADS | ({"optimizer": "AdamW, EMA"} if configurations[0].ema else {})
    lines = [heads.get(line, line) for line in LINES]
    rows = [["policy", "checkpointing", "", *lines, "sum", "host", "fits", "largest micro-batch"]]
    for one in configurations:
        cells = [gib(one.peak.parts[line]) for line in LINES]
        host = gib(one.peak.host) if one.peak.host else ""
        last = [gib(one.peak.total), host, "yes" if one.fits else "no", str(one.largest_micro_batch())]
        rows.append([name_of(one), str(one.checkpointing), one.sharding.precision, *cells, *last])
    return columns(rows, left=3)


def most_by_part(one: Configuration) -> list[str]:
    """When the highest moment is, and each part's own highest, which may be at another one."""
    most = map(max, zip(*(numbers for _, numbers in moments(one.step)), strict=True))
    each = ", ".join(f"{HEADS.get(line, line)} {gib(count)}" for line, count in zip(LINES, most, strict=True))
    text = f"{name_of(one)}, {one.checkpointing}: highest in {one.peak.moment}. Each part's own highest: {each}"
    return textwrap.wrap(text, WIDTH)


def run_seconds(one: Configuration, samples: float) -> float:
    """Of the whole run, with saves at the best interval and failures; infinite where they leave it no time."""
    rest = 1 - one.saves.lost(one.saves.interval)
    return samples / one.speed.samples_per_second / rest if rest else math.inf


def kilowatt_hours(one: Configuration, seconds: float) -> float:
    machine, assume = one.machine, one.machine.assume
    return machine.gpus * machine.gpu.watts * assume.load * assume.pue / 1000 * seconds / 3600


def beside(labels: Sequence[str], configurations: Sequence[Configuration], samples: float | None) -> list[str]:
    """Configurations side by side: a line a quantity."""
    price = configurations[0].machine.assume.price

    def saved(one: Configuration) -> str:
        steps = max(1, round(one.saves.interval / one.speed.seconds))
        return f"{format_seconds(one.saves.interval)}, {steps} steps"

    def kept(one: Configuration) -> str:
        size = f"{one.saves.copy / 1e9:.2f}"
        return size if one.saves.copied else f"none, {size} do not fit"

    def batches(one: Configuration) -> str:
        return f"{one.batches.micro_batch_size} x {one.batches.accumulation_steps} x {one.batches.world_size}"

    shown: list[tuple[str, Callable[[Configuration], str]]] = [
        ("policy", name_of),
        ("activation checkpointing", lambda one: str(one.checkpointing)),
        ("precision", lambda one: one.sharding.precision),
        ("micro x accumulation x ranks", batches),
        ("pairs in the contrast", lambda one: str(one.batches.global_batch_size)),
        ("encoders run once more", lambda one: "yes" if one.batches.accumulation_steps > 1 else "no"),
        ("memory a GPU, GiB", lambda one: gib(one.peak.total) + ("" if one.fits else ", does not fit")),
        ("GFLOP a sample, of the model", lambda one: f"{one.speed.model_flops / 1e9:,.0f}"),
        ("  computed", lambda one: f"{one.speed.hardware_flops / 1e9:,.0f}"),
        ("computation, s a step", lambda one: f"{one.speed.compute:.3f}"),
        ("  queueing it on the host", lambda one: f"{one.speed.queueing:.3f}"),
        ("collectives, s a step", lambda one: f"{one.speed.collectives:.3f}"),
        ("  not hidden", lambda one: f"{one.speed.exposed:.3f}"),
        ("  sent by a GPU, GB a step", lambda one: f"{one.speed.sent / 1e9:.2f}"),
        ("optimizer, s a step", lambda one: f"{one.speed.optimizer:.3f}"),
        ("loading, s a step, beside it", lambda one: f"{one.speed.input:.3f}"),
        ("a step, s", lambda one: f"{one.speed.seconds:.3f}"),
        ("samples/s", lambda one: rate(one.speed.samples_per_second)),
        ("MFU", lambda one: f"{one.speed.mfu(one.machine):.1%}"),
        ("read from shards, MB/s", lambda one: f"{one.speed.samples_per_second * one.machine.assume.sample_kb / 1e3:,.0f}"),
        ("checkpoint, GB", lambda one: f"{one.saves.bytes / 1e9:.2f}"),
        ("a save stops the training, s", lambda one: f"{one.saves.seconds:.1f}"),
        ("  kept in a machine's memory, GB", kept),
        ("a failure every", lambda one: f"{one.saves.mttf / 86400:,.1f} days"),
        ("save every (loses least)", saved),
        ("  lost to saves and failures", lambda one: f"{one.saves.lost(one.saves.interval):.2%}"),
    ]
    if samples is not None:
        shown += [
            (f"days for {samples:.3g} samples", lambda one: f"{run_seconds(one, samples) / 86400:,.2f}"),
            ("GPU hours", lambda one: f"{run_seconds(one, samples) / 3600 * one.machine.gpus:,.0f}"),
            ("energy, kWh", lambda one: f"{kilowatt_hours(one, run_seconds(one, samples)):,.0f}"),
        ]
        if price is not None:
            shown.append(("price", lambda one: f"{run_seconds(one, samples) / 3600 * one.machine.gpus * price:,.0f}"))
    return columns([["", *labels], *([name, *map(form, configurations)] for name, form in shown)])


def sweep_table(found: Sequence[tuple[int, Configuration | None]], samples: float | None) -> list[str]:
    """The fastest configuration at each number of GPUs, in the same global batch."""
    heads = ["GPUs", "policy", "checkpointing", "micro x accumulation", "GiB a GPU", "samples/s", "a GPU"]
    rows = [heads + (["days", "GPU hours"] if samples is not None else [])]
    for gpus, one in found:
        if one is None:
            rows.append([str(gpus), "nothing fits", *[""] * (len(rows[0]) - 2)])
            continue
        speed, batches = one.speed.samples_per_second, one.batches
        row = [str(gpus), name_of(one), str(one.checkpointing), f"{batches.micro_batch_size} x {batches.accumulation_steps}"]
        row += [gib(one.peak.total), rate(speed), rate(speed / gpus)]
        if samples is not None:
            hours = run_seconds(one, samples) / 3600
            row += [f"{hours / 24:,.2f}", f"{hours * gpus:,.0f}"]
        rows.append(row)
    return columns(rows, left=3)


def assumptions(assume: Assumptions) -> list[str]:
    """Each with its option, its value and the first sentence of its meaning; --help has the rest."""
    give_help_texts(Assumptions)
    rows = []
    for item in dataclasses.fields(Assumptions):
        value = getattr(assume, item.name)
        given = "" if value == item.default else " (given)"
        text = item.metadata["help"].split(". ")[0].rstrip(".")
        rows.append([f"--{item.name.replace('_', '-')}", ("default" if value is None else f"{value:g}") + given, text])
    indent = max(len(row[0]) for row in rows) + max(len(row[1]) for row in rows) + 4
    return [
        line
        for row in columns(rows, left=3)
        for line in textwrap.wrap(row, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
    ]
