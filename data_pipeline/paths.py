"""Paths as they are. Libraries read `[v1]`, `*` and `?` in a path as a pattern, `::` as a chain, `key=value` as a column: what is
given to them goes through here, so that a folder may have any name."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from pathlib import Path

from data_pipeline.errors import UserError

NOT_PLAIN = re.compile(r"[^\w/.+=@~ -]")


def find(pattern: str, recursive: bool = False) -> list[Path]:
    """The file or folder of exactly this name, else what the pattern matches, in name order. Folders in it that exist by their name
    are no pattern: `cc12m [v1]/part-*.parquet` finds the parts in `cc12m [v1]`."""
    path = Path(pattern)
    if path.exists():
        return [path]
    for parent in path.parents:
        if parent.exists():
            rest = os.path.join(glob.escape(str(parent)), path.relative_to(parent))
            if found := glob.glob(rest, recursive=recursive):
                return sorted(map(Path, found))
    return []


def is_plain(path: Path | str) -> bool:
    """Whether a path holds nothing that any library reads as more than a letter."""
    return not NOT_PLAIN.search(str(path))


class PlainPaths:
    """Other names for paths, free of signs that may mean something to DuckDB or Java: links in a temporary folder of this machine,
    made where they are needed and gone with `close`. DuckDB 2.0 knows no escape: it lists whole folders for `[[]`, and fails at a
    backslash."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory | None = None
        self._links: dict[Path, Path] = {}

    def __call__(self, path: Path) -> Path:
        """A path, absolute, of the same file or folder; a file that is not there yet needs a plain name of its own. Raises
        `UserError` where the folder for temporary files has no plain name."""
        path = path.absolute()
        if is_plain(path):
            return path
        if NOT_PLAIN.search(path.name):
            return self._link(path)
        return self._link(path.parent) / path.name

    def _link(self, path: Path) -> Path:
        if path not in self._links:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="plain.")
                if not is_plain(self._folder.name):
                    raise UserError(f"TMPDIR {tempfile.gettempdir()}: expected a name of letters, digits and . _ - + = @ ~")
            link = Path(self._folder.name) / str(len(self._links))
            link.symlink_to(path)
            self._links[path] = link
        return self._links[path]

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._links = None, {}


def read_local_paths_literally() -> None:
    """From now on `fsspec.core.url_to_fs`, in this process, takes every path that begins with / for a file of that name, and its
    file system's `glob` takes the folder so; URLs stay what they are. For img2dataset, all of whose paths go there."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    theirs = fsspec.core.url_to_fs
    if hasattr(theirs, "for_urls"):
        return

    class LiteralFileSystem(LocalFileSystem):
        def glob(self, path, maxdepth=None, **kwargs):
            folder, _, name = path.rpartition("/")
            return sorted(glob.glob(f"{glob.escape(folder)}/{name}"))

    def url_to_fs(url, **kwargs):
        if not str(url).startswith("/"):
            return theirs(url, **kwargs)
        return LiteralFileSystem(), str(url).rstrip("/")

    url_to_fs.for_urls = theirs
    fsspec.core.url_to_fs = url_to_fs
