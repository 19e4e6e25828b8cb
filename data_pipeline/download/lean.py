"""img2dataset without what it imports and a download never uses: three quarters of its start, and 270 of 370 MiB a process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

UNUSED = {
    "albumentations": "with scipy and pydantic, its resizer and its blurrer; ours stands in the resizer's place",
    "pandas": "its reader of JSON; it gets parquet",
    "wandb": "its log; QuietLogger stands in its place",
}
"""Libraries that img2dataset imports, with what for."""
ABSENT = ("torch",)
"""What webdataset does without where it is not installed, as on the CPU machines that download."""


class Unused(ModuleType):
    """Stands for a library that is imported and not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what looks at any module, and goes on
        raise RuntimeError(
            f"img2dataset uses {self.__name__}.{name}: a download was taken to do without {self.__name__}; "
            f"take it out of UNUSED in {__file__}"
        )


@contextlib.contextmanager
def without_the_unused() -> Iterator[None]:
    """What is imported within gets stand-ins for libraries that are not there yet; who imports those later gets the real ones."""
    stand_ins = {name: Unused(name) for name in UNUSED if name not in sys.modules}
    stand_ins |= {name: None for name in ABSENT if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if name in sys.modules and sys.modules[name] is stand_in:
                del sys.modules[name]
