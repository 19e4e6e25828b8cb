"""Training curves of a run as small pictures, from its metrics.jsonl."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np

# (key, title, what a reader should know)
CURVES = (
    ("loss", "Loss", "weighted sum of the three below"),
    ("itc", "Contrast (ITC)", "chance: log of the batch size"),
    ("ic", "Captioning (IC)", "nats a token"),
    ("mim", "Reconstruction (TG-MIM)", "L1 of hidden pixels, normalised units"),
    ("lr", "Learning rate", ""),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("logit_scale", "Logit scale", "inverse temperature of the contrast, at most 100"),
    ("samples_per_second", "Samples a second", "all ranks together"),
    ("data_wait", "Data wait", "share of the time spent waiting for samples, 0 to 1"),
)
INK, LINE, FAINT = "#282c34", "#1d6fa5", "#a9c7dc"


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{key: (steps, values)} of the finite numbers in a metrics.jsonl, by step. A step logged twice (a resumed run
    repeats some) counts with its last value; a torn last line is left out. OSError if the file cannot be read."""
    series: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                series.setdefault(key, {})[step] = float(value)
    return {key: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)])) for key, values in series.items()}


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over up to `window` neighbours, fewer at the ends."""
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def draw_curve(steps: np.ndarray, values: np.ndarray) -> bytes:
    """PNG of one curve, 720 x 380 pixels: measured values faint, their running mean on top. The title is left to the
    page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 1.9), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    window = len(values) // 15
    if window >= 3:
        axes.plot(steps, values, color=FAINT, linewidth=0.8)
        axes.plot(steps, smooth(values, window), color=LINE, linewidth=1.6)
    else:
        axes.plot(steps, values, color=LINE, linewidth=1.4, marker="o" if len(values) < 15 else None, markersize=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bdc6")
    axes.tick_params(colors=INK, labelsize=7, color="#b8bdc6", length=3)
    axes.grid(axis="y", color="#e8eaee", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", fontsize=7, color=INK, loc="right", labelpad=1)
    axes.locator_params(axis="x", nbins=5, integer=True)
    if values.max() < 0.01:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.yaxis.get_offset_text().set_fontsize(7)
    figure.tight_layout(pad=0.5)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return stream.getvalue()
