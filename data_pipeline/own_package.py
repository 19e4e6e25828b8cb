"""Where this package lies, for the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder of `data_pipeline` and `sycoca_ds`: a checkout, or that of all packages."""


def import_path(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> dict[str, str]:
    """PYTHONPATH for a process of this Python that imports these packages; nothing where they lie among all others, which it finds
    by itself. There it would put those before Python's own, and img2dataset brings a package `dataclasses`, of Python 3.6."""
    if root.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))}
