"""What the numbers of compositions are called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sycoca_ds.eval.compositions import aro, sugarcrepe, winoground
from sycoca_ds.eval.task import Wording, with_bounds

HOWS = {
    "cosine": "by the cosine of picture and caption",
    "likelihood": "by the caption's log-probability under the text decoder, the sum over its tokens",
    "gain": "by how much the picture adds to that log-probability (alpha = 1)",
    "blind": "by the log-probability without a picture: what a model that never looks gets",
}
"""Scores, and how each is told."""
SEEING = ("cosine", "likelihood", "gain")
"""Those that look at the picture."""
PARTS = {
    "text": ("text", "pairs of which each picture scores its own caption higher than the other"),
    "image": ("image", "pairs of which each caption scores its own picture higher than the other"),
    "group": ("group", "pairs of which both are so"),
}
"""Winoground's three numbers."""
CHANCE = {"text": 25.0, "image": 25.0, "group": 100.0 / 6.0}
"""Of Winoground's: of the 24 orders of four scores, in how many it is so."""


def _numbers() -> dict[str, Wording]:
    found: dict[str, Wording] = {}
    for how, meaning in HOWS.items():
        found[f"{sugarcrepe.NAME}_{how}"] = Wording(f"SugarCrepe, {how}", "%", f"mean of its seven subsets, {meaning}")
    for subset in sugarcrepe.SUBSETS:
        for how, meaning in HOWS.items():
            wording = Wording(f"SugarCrepe {subset}, {how}", "%", f"items whose caption beats its negative, {meaning}")
            found[f"{sugarcrepe.NAME}_{subset}_{how}"] = wording
    for part, (label, what) in PARTS.items():
        for how in SEEING:
            found[f"{winoground.NAME}_{part}_{how}"] = Wording(f"Winoground {label}, {how}", "%", f"{what}, {HOWS[how]}")
    for name, title in aro.TITLES.items():
        what = "relations" if name == "vg_relation" else "pairs of attributes"
        for how, meaning in HOWS.items():
            found[f"{name}_{how}"] = Wording(
                f"{title}, {how}", "%", f"accuracy within each of its {what}, mean over these, {meaning}; read it beside blind"
            )
    blind = {name: replace(wording, control=True) for name, wording in found.items() if name.endswith("_blind")}
    return with_bounds({**found, **blind})


NUMBERS = _numbers()
HEADLINES = tuple(
    name
    for name in NUMBERS
    if not name.endswith(("_low", "_high")) and not any(name.startswith(f"{sugarcrepe.NAME}_{s}_") for s in sugarcrepe.SUBSETS)
)
ROWS = {
    **{f"{sugarcrepe.NAME}_{subset}": f"SugarCrepe {subset}" for subset in sugarcrepe.SUBSETS},
    sugarcrepe.NAME: "SugarCrepe, mean",
    **{f"{winoground.NAME}_{part}": f"Winoground {label}" for part, (label, _) in PARTS.items()},
    **aro.TITLES,
}
"""The table of all numbers: what stands in front of the score in their names, and what it is called."""


def table_rows(record: dict[str, Any]) -> list[tuple[str, list[float | None], float]]:
    """(label, value of each of `HOWS`, chance) of the rows of a finished task that have a number."""
    metrics, chance, found = record["metrics"], record["chance"], []
    for row, label in ROWS.items():
        names = [f"{row}_{how}" for how in HOWS]
        if any(metrics.get(name) is not None for name in names):
            found.append((label, [metrics.get(name) for name in names], next(chance[name] for name in names if name in chance)))
    return found
