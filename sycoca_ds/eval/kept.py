"""What a task has done and not finished: found again after a kill, as long as nothing that it depends on has changed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files import atomic_path, write_json

KEY = "key"


class Kept:
    """A folder of finished pieces. Pieces of another key are made again."""

    def __init__(self, folder: Path | None, key: str):
        """folder: None keeps nothing. key: names everything that the pieces depend on."""
        self.folder, self.key = folder, key

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The piece `name`, from NAME.npz or made and written there."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file[KEY]) == self.key:
                    return {field: file[field] for field in file.files if field != KEY}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # unreadable is the same as absent
        made = make()
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{KEY: np.array(self.key)}, **made)
        return made

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """The same of a JSON value, from NAME.json."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        try:
            found = json.loads(path.read_text())
            if found[KEY] == self.key:
                return found["value"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        made = make()
        write_json(path, {KEY: self.key, "value": made})
        return made


def pieces(count: int, size: int) -> Iterator[tuple[str, range]]:
    """(number of the piece as a text, its places) of `count` places."""
    for number, start in enumerate(range(0, count, size)):
        yield f"{number:05d}", range(start, min(start + size, count))
