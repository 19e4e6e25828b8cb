"""Every field of the configuration as a page, from the dataclasses themselves.

python -m sycoca_ds.reference > docs/configuration.md
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from data_pipeline.command_line import help_texts
from sycoca_ds.config import TrainConfig
from sycoca_ds.options import flat
from sycoca_ds.presets import DEFAULT_PRESET, PRESETS

INTRODUCTION = f"""# Every field of a run

Written by `python -m sycoca_ds.reference` from the dataclasses in `sycoca_ds/config/`; a test holds the two equal. Each field is an
option of `train.py` (`--optim.lr 1e-4`) and a key of the JSON that `--config FILE` reads and every run leaves as `config.json`
(`{{"optim": {{"lr": 1e-4}}}}`). What is given later overrides what is given earlier: `--preset NAME` (default `{DEFAULT_PRESET}`),
then `--config FILE`, then `--task`, then single options. A name that no field has is an error that names the nearest.

The default is that of the field; [presets](#what-presets-change) set some of them. A value of several parts is given with blanks
between them (`--optim.betas 0.9 0.95`), none at all as `None`; a flag has no value: `--model.fusion`, `--model.no-fusion`.
"""


def kind_of(hint: Any) -> str:
    """A field's type for a reader: `int or None`, `auto / bf16 / fp32`, `str, any number`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return "flag"
    if origin is typing.Literal:
        return " / ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"{kind_of(parts[0])}, any number" if parts[1:] == (...,) else f"{len(parts)} {kind_of(parts[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("`None`" if part is types.NoneType else kind_of(part) for part in parts)
    return hint.__name__


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, (tuple, list)):
        return f"`{' '.join(map(str, value))}`" if value else "none"
    return f"`{value}`"


def sections(kind: type, default: Any, prefix: str = "") -> Iterator[tuple[str, type, list[tuple[str, str, str, str]]]]:
    """(dotted prefix, dataclass, its rows: option, type, default, text) of a dataclass and of those in it."""
    hints, texts = typing.get_type_hints(kind), help_texts(kind)
    rows, inner = [], []
    for item in dataclasses.fields(kind):
        hint, value, name = hints[item.name], getattr(default, item.name), f"{prefix}{item.name.replace('_', '-')}"
        if dataclasses.is_dataclass(hint):
            inner.append((hint, value, f"{name}."))
        else:
            rows.append((name, kind_of(hint), shown(value), texts[item.name].replace("|", "\\|")))
    if rows:
        yield prefix, kind, rows
    for part in inner:
        yield from sections(*part)


def page() -> str:
    """docs/configuration.md."""
    lines = [INTRODUCTION]
    for prefix, kind, rows in sections(TrainConfig, TrainConfig()):
        lines += [f"## {prefix.rstrip('.') or 'the run as a whole'}", "", " ".join((kind.__doc__ or "").split()), ""]
        lines += ["| option | type | default | what it is |", "|---|---|---|---|"]
        lines += [f"| `--{name}` | {typed} | {default} | {text} |" for name, typed, default, text in rows]
        lines.append("")
    lines += ["## What presets change", "", "Fields that differ from the defaults above.", ""]
    ground = flat(dataclasses.asdict(TrainConfig()))
    for name, config in PRESETS.items():
        changed = {key: value for key, value in flat(dataclasses.asdict(config)).items() if value != ground[key]}
        words = ", ".join(f"{key.replace('_', '-')} {shown(value)}" for key, value in changed.items())
        lines += [f"- **`{name}`**: {words}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
