"""From catalogues of URLs to verified WebDataset shards, on CPUs, without torch. Nothing here imports `sycoca_ds`.

catalogue -> download -> shards -> report        rooms on the way of a row, each a folder that says what comes in and goes out
fetch, pictures, tokenizer, world                one URL and one picture from strangers; captions to ids; small worlds to try it on
build, parts, __main__                           the ways through the rooms, and their command line
errors, files, lock, progress, command_line, own_package   the ground that every room stands on
"""

import importlib
import sys
import types

MOVED = {"picture_headers": "pictures.headers", "robots": "fetch.robots"}
"""Modules that others import under names they had before 2026-11-26."""


def _under_its_old_name(old: str, new: str) -> None:
    module = types.ModuleType(f"{__name__}.{old}", f"Moved to {__name__}.{new}.")
    module.__getattr__ = lambda name: getattr(importlib.import_module(f"{__name__}.{new}"), name)
    sys.modules[module.__name__] = module


for _old, _new in MOVED.items():
    _under_its_old_name(_old, _new)
