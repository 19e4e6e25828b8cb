"""A model in a folder of its own: config.json, model.safetensors and, if known, tokenizer.json. What `sycoca_ds/export.py` writes.

No pickle, nothing of DeepSpeed. config.json holds the model's configuration, where the weights come from, and the sha256 of the
other files, which is checked before they are used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.errors import UserError, check_format
from data_pipeline.files import check_folder, make_folder, sha256_file, sync, sync_folder
from sycoca_ds.config import ModelConfig, check_model
from sycoca_ds.model.shapes import check_tensors, our_shapes, unwrapped
from sycoca_ds.options import from_dict, read_json_object

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_exported(folder: Path) -> bool:
    """Whether a folder claims to be one. A run's folder has a config.json too, and its checkpoints beside it."""
    return (folder / CONFIG_FILE).is_file() and not (folder / "checkpoints").exists()


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; when the block ends well its files are fsynced and it is renamed to `out`.

    Raises:
        UserError: `out` exists and is not an empty folder. Nothing is ever overwritten.
    """
    check_free(out)
    make_folder(out.parent)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):  # by a killed process
        number = left.name.split(".")[-2]
        if number == str(os.getpid()) or not Path("/proc", number).exists():
            shutil.rmtree(left, ignore_errors=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync_folder(temporary)
        check_free(out)
        os.replace(temporary, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(out: Path) -> None:
    """Raises `UserError` unless `out` is an empty folder, or does not exist and can be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder: nothing is overwritten; name another, or delete it")
    check_folder(out)


def cast(state: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The weights in another precision; the logit scale stays float32: bfloat16 would turn 100 into 98.9.

    Raises:
        UserError: a weight is not finite, or too large for the precision, naming it.
    """
    result = {}
    for name, value in state.items():
        if not value.is_floating_point():
            raise UserError(f"weight {name} is of type {value.dtype}: expected floating point")
        kept = value.to(torch.float32 if name == "logit_scale" else DTYPES[dtype])
        if not torch.isfinite(value).all():
            raise UserError(f"weight {name} is not finite: nothing was written; take an earlier checkpoint, or another file")
        if not torch.isfinite(kept).all():
            raise UserError(f"weight {name} does not fit {dtype}: nothing was written; use --dtype float32")
        result[name] = kept
    return result


def save_tensors(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Writes a safetensors file; its size, sha256, precision and number of parameters."""
    from safetensors.torch import save_file

    save_file({name: value.detach().contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})
    # safetensors makes files for their owner's eyes alone; weights on a shared disk are for the group like their config.json
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "dtype": str(next(value.dtype for name, value in state.items() if name != "logit_scale")).removeprefix("torch."),
        "parameters": sum(value.numel() for value in state.values()),
    }


def write_exported(
    folder: Path, model: ModelConfig, state: dict[str, Tensor], tokenizer: Path | None, source: dict[str, Any]
) -> dict[str, Any]:
    """Fills a new folder; returns what config.json holds.

    Args:
        state: every parameter of the model, in the precision to be written.
        source: where the weights come from (kind, path, step, samples, digest).
    """
    record = {
        "format": FORMAT,
        "model": dataclasses.asdict(model),
        "source": source,
        "weights": save_tensors(state, folder / WEIGHTS_FILE),
        "tokenizer": copy_tokenizer(tokenizer, folder),
        "versions": {name: version(name) for name in ("torch", "safetensors")},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return record


def copy_tokenizer(tokenizer: Path | None, folder: Path) -> dict[str, str] | None:
    """Puts the tokenizer beside the weights; its file name and sha256."""
    if tokenizer is None:
        return None
    shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
    return {"file": TOKENIZER_FILE, "sha256": sha256_file(folder / TOKENIZER_FILE)}


def read_exported(folder: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """(the model's configuration, its weights in their stored precision, config.json's content).

    Raises:
        UserError: not such a folder, or a file of it is missing, damaged or of another format, naming it.
    """
    from safetensors.torch import load_file

    config_path = folder / CONFIG_FILE
    record = read_json_object(config_path, "exported model")
    check_format(record.get("format"), FORMAT, config_path, "it is not what sycoca_ds/export.py writes: export the model again")
    if not all(isinstance(record.get(key), dict) for key in ("model", "source", "weights")):
        raise UserError(f"{config_path}: expected model, source and weights, as sycoca_ds/export.py writes them")
    for key, name in (("weights", WEIGHTS_FILE), ("tokenizer", TOKENIZER_FILE)):
        if record.get(key) is None:
            continue
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, {CONFIG_FILE} beside it names it: export the model again")
        if sha256_file(path) != record[key].get("sha256"):
            raise UserError(f"{path} is damaged (its sha256 is not what {CONFIG_FILE} beside it says): export the model again")
    config = from_dict(ModelConfig, record["model"], f"{config_path}: model")
    check_model(config)
    state = unwrapped(load_file(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    check_tensors(state, our_shapes(config), f"{folder / WEIGHTS_FILE}: its tensors")
    return config, state, record
