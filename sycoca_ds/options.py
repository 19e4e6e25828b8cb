"""Command line and files to a `TrainConfig`, and back. Unknown keys are errors that name the nearest known one."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.command_line import nearest, parse_command
from data_pipeline.errors import UserError, check_format
from sycoca_ds.config import TrainConfig
from sycoca_ds.presets import DEFAULT_PRESET, PRESETS, RECIPES

FORMAT_KEY, CONFIG_FORMAT = "format", 1
"""Of a run's config.json. A field that is added needs no other number: files without it mean its default."""
NO_MATTER = (
    "run.out",  # the folder may have been moved
    "data.train",  # its manifest's digest is compared instead, by train.py on resuming and by the ablations
    *(f"data.{name}" for name in ("questions", "validation_questions")),  # part of that digest; not of the training
    *(f"data.{name}" for name in ("validation", "regions", "workers", "cache", "cache_gib")),
    *(f"run.{name}" for name in ("log_every", "picture_every", "pictures", "validation_samples", "max_skipped_steps")),
    *(f"run.{name}" for name in ("best_metric", "peak_tflops", "profile")),
    *(f"run.{name}" for name in ("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "expected_world_size")),
)
"""Fields that may change between two starts of a run: what is learned does not depend on them."""


def field_names(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields of nested dataclasses, with hyphens as on the command line."""
    names = []
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        name = prefix + item.name.replace("_", "-")
        names += field_names(hints[item.name], f"{name}.") if dataclasses.is_dataclass(hints[item.name]) else [name]
    return names


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one of dotted names."""
    parts = [
        flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value} for key, value in values.items()
    ]
    return {key: value for part in parts for key, value in part.items()}


def changed_fields(old: dict[str, Any], new: dict[str, Any], found: dict[str, Any] | None = None) -> dict[str, tuple[Any, Any]]:
    """The fields by which two starts of a run differ in what they learn: name as on the command line -> (old value, new value).

    Args:
        old, new: `dataclasses.asdict` of two `TrainConfig`, `old` perhaps read from JSON and without the youngest fields.
        found: values that take the place of those that `new` leaves open (`run.precision`, `model.text.vocab_size`).
    """

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value  # as JSON has it

    before, now = flat(old), {**flat(new), **(found or {})}
    return {
        name.replace("_", "-"): (before[name], value)
        for name, value in now.items()
        if name in before and plain(before[name]) != plain(value) and name not in NO_MATTER
    }


def from_dict(kind: type, values: dict[str, Any], where: str, base: Any = None) -> Any:
    """A dataclass from nested dicts; fields that are not given keep `base`'s values, or the defaults.

    Raises:
        UserError: a key that no field has, naming the file, the key and what was expected.
    """
    base = kind() if base is None else base
    if kind is TrainConfig and FORMAT_KEY in values:  # those of before there was a number have the same layout
        check_format(values[FORMAT_KEY], CONFIG_FORMAT, where, "write it anew", oldest=1)
        values = {key: value for key, value in values.items() if key != FORMAT_KEY}
    hints, changes = typing.get_type_hints(kind), {}
    known = [item.name for item in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, known)} (expected one of {', '.join(known)})")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {key} = {value!r}: expected an object with keys of {hints[key].__name__}")
            value = from_dict(hints[key], value, f"{where}: {key}", getattr(base, key))
        else:
            value = tuple(value) if isinstance(value, list) else value
            if isinstance(value, str) and typing.get_args(hints[key])[1:] == (...,):
                value = (value,)  # "train": "DIR" for "train": ["DIR"]
            if not fits(value, hints[key]):
                raise UserError(f"{where}: {key} = {value!r}: expected {getattr(hints[key], '__name__', hints[key])}")
        changes[key] = value
    return dataclasses.replace(base, **changes)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a field's type; whole numbers are fine where a float is expected."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in parts
    if origin is tuple:
        if parts[1:] == (...,):
            return isinstance(value, tuple) and all(fits(item, parts[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if parts:  # a union, as in `int | None`
        return any(fits(value, part) for part in parts)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: missing, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist: check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} is not valid JSON ({error}): mend that place") from error
    if not isinstance(values, dict):
        raise UserError(f"{what} {path}: expected a JSON object, found {type(values).__name__}")
    return values


def take_option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """Takes `--name VALUE` or `--name=VALUE` out of the arguments: (value or None, the rest)."""
    rest, value, flag = [], None, f"--{name}"
    items = iter(arguments)
    for item in items:
        if item == flag:
            value = next(items, None)
            if value is None:
                raise UserError(f"{flag} is the last word: expected a value after it")
        elif item.startswith(flag + "="):
            value = item[len(flag) + 1 :]
        else:
            rest.append(item)
    return value, rest


def parse_options(arguments: list[str], program: str = "sycoca_ds/train.py", others: Sequence[str] = ()) -> TrainConfig:
    """`[--preset NAME] [--config FILE] [--task NAME] [--section.field VALUE]...` -> configuration; later ones override earlier.

    A task's recipe is applied where preset and file are of another task: the file may be the pretraining's, or the task's own.
    The launcher's `--local_rank` is dropped.

    Args:
        others: names of options that the program has beside these, and has taken: a misspelt one may be one of them.

    Raises:
        UserError: an unknown preset, option or key, or a value of the wrong kind, on one line.
        SystemExit: after `--help`.
    """
    arguments = [item for item in arguments if not item.startswith("--local_rank")]
    arguments = ["--help" if item in ("-H", "--help-verbose") else item for item in arguments]
    preset, arguments = take_option(arguments, "preset")
    preset = preset or DEFAULT_PRESET
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: no such preset{nearest(preset, list(PRESETS))} (expected one of {', '.join(PRESETS)})")
    config = PRESETS[preset]
    file, arguments = take_option(arguments, "config")
    if file is not None:
        config = from_dict(TrainConfig, read_json_object(Path(file), "--config file"), file, config)
    task, arguments = take_option(arguments, "task")
    tasks = ["pretrain", *RECIPES]
    if task is not None and task not in tasks:
        raise UserError(f"--task {task}: no such task{nearest(task, tasks)} (expected one of {', '.join(tasks)})")
    if task is not None and task != config.task:
        if task == "pretrain":
            raise UserError(f"--task pretrain: {file} is a run of --task {config.task}; give a pretraining's file, or a preset")
        config = RECIPES[task](config)
    description = f"""Trains a model. The same command resumes a run. --task caption or vqa fine-tunes the weights of --run.weights.

    --preset {{{",".join(PRESETS)}}}
        where all below starts from (default: {DEFAULT_PRESET})
    --config FILE
        a run's config.json, over the preset"""
    config, unknown = parse_command(
        TrainConfig, arguments, program, default=config, description=description, return_unknown_args=True
    )
    if unknown:
        name = unknown[0].split("=")[0]
        known = [f"--{field}" for field in [*field_names(TrainConfig), "preset", "config", *others]]
        raise UserError(f"unknown option {name}{nearest(name.replace('_', '-'), known)} (--help lists all)")
    return config


def to_json(config: TrainConfig) -> str:
    """The configuration as JSON that `--config` reads back."""
    return json.dumps({FORMAT_KEY: CONFIG_FORMAT, **dataclasses.asdict(config)}, indent=2) + "\n"
