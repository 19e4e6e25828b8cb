"""Numbers as text, and as charts: what the page's template draws as SVG, in plain places and labels."""

from __future__ import annotations

import math
from itertools import pairwise

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BASE = 480, 216, 62, 452, 24, 172
"""Of a chart: its size, and the edges of the plot in it."""


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value / 1e6:,.0f} M"


def tick_text(value: float) -> str:
    return f"{value:,.10g}" if value < 1e7 else f"{value / 1e6:,.10g} M"


def size_text(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def hours_text(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    for unit, factor in (("h", 1.0), ("min", 60.0)):
        if hours * factor >= 1:
            return f"{hours * factor:,.{0 if hours * factor >= 100 else 1}f} {unit}"
    return f"{hours * 3600:,.1f} s"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` on, the last of them at or above `high`."""
    rough = max(high - low, 1e-9) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first = math.floor(low / step) * step
    return [first + index * step for index in range(math.ceil((high - first) / step - 1e-9) + 1)]


def frame_of(title: str, said: str, x_label: str, y_label: str) -> dict:
    return {
        **{"title": title, "said": said, "x_label": x_label, "y_label": y_label, "ticks": None, "bars": [], "paths": []},
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "base": BASE, "opacity": 1},
    }


def _y_axis(highest: float) -> tuple[list[tuple[float, str]], float]:
    """(place, label) of the lines, and units of height for one of the value."""
    values = ticks(0, highest or 1)
    scale = (BASE - TOP) / values[-1]
    return [(round(BASE - value * scale, 1), tick_text(value)) for value in values], scale


def histogram_chart(title: str, facts: dict, unit: str, what: str, ratio: bool = False) -> dict:
    """A histogram (report.histogram) drawn, or a sentence where all values are the same."""
    short = ".2f" if ratio else ",.0f"
    least, median, most = (format(facts[name], short) for name in ("least", "median", "most"))
    if facts["least"] == facts["most"]:
        return frame_of(title, f"{median} {'' if ratio else unit} in every one.", "", "")
    edges, counts = facts["edges"], facts["counts"]
    beyond = " The outer bars hold what lies beyond." if facts["most"] > edges[-1] or facts["least"] < edges[0] else ""
    frame = frame_of(title, f"{least} to {most}, half have {median} or more.{beyond}", unit, what)
    scale = math.log if facts["scale"] == "log" else float
    low, span = scale(edges[0]), scale(edges[-1]) - scale(edges[0])

    def place(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (scale(value) - low) / span, 1)

    y_ticks, height = _y_axis(max(counts))
    for count, (start, end) in zip(counts, pairwise(edges), strict=True):
        x, tall = place(start) + 0.5, round(count * height, 1)
        said = f"{start:{short}} to {end:{short}}: {count:,}"
        frame["bars"].append({"x": x, "y": round(BASE - tall, 1), "w": round(place(end) - x - 0.5, 1), "h": tall, "title": said})
    if ratio:
        marks = [(0.25, "1:4"), (0.5, "1:2"), (1, "1:1"), (2, "2:1"), (4, "4:1")]
    elif scale is math.log:
        marks = [(factor * 10**power, tick_text(factor * 10**power)) for power in range(7) for factor in (1, 2, 5)]
    else:
        marks = [(value, tick_text(value)) for value in ticks(edges[0], edges[-1], 5)]
    inside = [(place(value), label) for value, label in marks if edges[0] * 0.999 <= value <= edges[-1] * 1.001]
    return frame | {"ticks": {"x": inside, "y": y_ticks}}


def time_charts(over_time: dict) -> list[dict]:
    """Success rate and speed by the time since the first shard began."""
    width, bins = over_time["seconds_per_bin"], len(over_time["rows"])
    total = width * bins
    unit, seconds = next(
        (name, length)
        for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
        if total >= 2 * length or length == 1
    )

    def place(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * value / total, 1)

    x_ticks = [
        (place(value * seconds), tick_text(value)) for value in ticks(0, total / seconds, 6) if value * seconds <= total * 1.001
    ]
    speeds, rates = over_time["rows_per_second"], over_time["success_rate"]
    x_label = f"{unit} since the first shard began"
    rate = frame_of("Success rate", "Share of the rows requested whose picture arrived.", x_label, "rows that arrived")
    pieces, path = [], ""
    for index, value in enumerate([*rates, None]):
        if value is None:
            pieces, path = [*pieces, *([path] if path else [])], ""
            continue
        y = round(BASE - value * (BASE - TOP), 1)
        path += f"{'L' if path else 'M'}{place(index * width)} {y}L{place((index + 1) * width)} {y}"
    y_ticks = [(round(BASE - part * (BASE - TOP) / 4, 1), f"{25 * part} %") for part in range(5)]
    rate |= {"paths": pieces, "ticks": {"x": x_ticks, "y": y_ticks}}
    speed = frame_of("Speed", "Rows done a second, arrived or not, of all jobs together.", x_label, "rows a second")
    y_ticks, height = _y_axis(max(speeds))
    for index, value in enumerate(speeds):
        tall, x = round(value * height, 1), place(index * width)
        said = f"{over_time['rows'][index]:,.0f} rows, {value:,.1f} a second"
        speed["bars"].append(
            {"x": x, "y": round(BASE - tall, 1), "w": round(place((index + 1) * width) - x, 1), "h": tall, "title": said}
        )
    return [rate, speed | {"ticks": {"x": x_ticks, "y": y_ticks}, "opacity": 0.75}]
