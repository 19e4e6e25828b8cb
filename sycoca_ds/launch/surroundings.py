"""`python -m sycoca_ds.launch.surroundings JSON`: what a rank would find on this host, as a line of JSON. Started by probe.py.

Asked with the run's own functions, each part on its own: what is wrong with one must not hide the others.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from data_pipeline.errors import UserError, one_line


def installed() -> dict[str, Any]:
    """Versions of what runs, after importing it; the GPUs that torch sees."""
    import torch

    found = {
        "torch": torch.__version__,
        "gpus_of_torch": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None,
    }
    from sycoca_ds.engine.ranks.environment import prepare_deepspeed

    prepare_deepspeed()
    import deepspeed

    return {**found, "deepspeed": deepspeed.__version__, "numpy": importlib.metadata.version("numpy")}


def offloads(ds_config: str) -> bool:
    """Whether the policy keeps the optimizer in host memory. Raises `UserError` as a run does."""
    from sycoca_ds.engine.policy import read_policy

    return read_policy(ds_config)["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"


def operators(offload: bool) -> list[dict[str, Any]]:
    """The compiled operators that a run loads: `name`, `folder`, and `state`: ready, or what a start would do first.

    torch asks ninja at every start, also when nothing is to be done. To another ninja than the one that compiled them everything is
    out of date.
    """
    from sycoca_ds.engine.operators import lacking, needed_operators
    from sycoca_ds.engine.ranks.environment import own_tools_first

    path, found = own_tools_first(), []
    ninja, missing = shutil.which("ninja", path=path), lacking(path)
    for builder, folder in needed_operators(offload):
        state = "ready"
        if ninja is None:
            state = f"no ninja on PATH ({path})"
        elif not (folder / f"{builder.NAME}.so").is_file():
            state = "not compiled" if missing is None else f"not compiled, and there is no {missing[0]}"
        elif (folder / "build.ninja").is_file():
            dry = subprocess.run([ninja, "-n", "-C", str(folder)], capture_output=True, text=True, timeout=30)
            state = state if "no work to do" in dry.stdout else f"out of date to {ninja}"
        found.append({"name": builder.NAME, "folder": str(folder), "state": state})
    return found


def data(folders: list[str]) -> str:
    """Digest of the manifests, every tar looked at. Raises `UserError` as a run does."""
    from sycoca_ds.data.sources import Sources

    return Sources.load(folders).digest


def look(question: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, Callable[[], Any]] = {
        "installed": installed,
        "operators": lambda: operators(offloads(question["ds_config"])),
        "data": lambda: data(question["data"]) if question["data"] else None,
    }
    answer: dict[str, Any] = {"problems": {}}
    for name, part in parts.items():
        try:
            answer[name] = part()
        except Exception as error:  # a broken installation ends in anything
            text = " ".join(str(error).split()) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            answer["problems"][name] = text
    return answer


if __name__ == "__main__":
    handle = os.dup(1)
    os.dup2(2, 1)  # what libraries print while they are imported is not the answer
    answer = look(json.loads(sys.argv[1]))
    os.write(handle, json.dumps(answer).encode() + b"\n")
