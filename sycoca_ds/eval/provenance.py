"""What a number needs beside it to be trusted: code, weights, data, versions, hardware, date."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "deepspeed", "tokenizers", "pycocoevalcap", "scikit-learn", "numpy", "pillow", "pyarrow")


def git_sha() -> str | None:
    """Commit of the source tree, `-dirty` appended if files differ; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # an installed copy may lie inside somebody else's repository: that commit would say nothing about this code
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str | None]:
    """Installed version of each package a number depends on (None: not installed) and of Python."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def hardware(device: torch.device) -> dict[str, str | int | float | None]:
    """Processor, cores usable by this process, memory (GiB) and the GPU if the device is one."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": processor, "cores": cores, "memory_gib": memory, "gpu": gpu}
