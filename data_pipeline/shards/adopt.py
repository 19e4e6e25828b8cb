"""Ready-made mirrors: tars that somebody else downloaded, verified and indexed where they are, without a download.

Mirrors like pixparse/cc12m-wds hold an image, a .txt and a .json a sample, as img2dataset writes them; the .json may be missing or
say little. What it does not say is derived: the uid from the tar's and the sample's name and from what it holds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from data_pipeline.paths import find

RECORD = "mirror.json"
MAX_NAME_BYTES = 200
"""Of a tar; its index and what is written before it is whole have longer names, and file systems end at 255."""


def is_mirror(folder: Path) -> bool:
    """Whether a data set folder's tars are somebody else's."""
    return (folder / RECORD).exists()


def find_tars(pattern: str, out: Path | None = None) -> list[Path]:
    """Tars of a folder or a glob, in name order, also links that lead nowhere: verification names them. One that is there under
    several paths counts once.

    Args:
        out: a data set folder whose own tars do not count, if there are others: a glob may reach it.

    Raises:
        UserError: none, two of the same name, or a name that is not UTF-8 or too long.
    """
    path = Path(pattern)
    found = sorted(path.glob("*.tar")) if path.is_dir() else find(pattern, recursive=True)
    found = [tar.absolute() for tar in found if tar.suffix == ".tar" and not tar.name.startswith(".")]
    found = [tar for tar in found if tar.is_file() or tar.is_symlink() and not tar.exists()]
    if out is not None:
        own = (out / "shards").resolve()
        found = [tar for tar in found if tar.parent.resolve() != own] or found
    if not found:
        raise UserError(f"--tars {pattern}: no tars there; expected a folder with *.tar, or a glob in quotes")
    names: dict[str, Path] = {}
    for tar in found:
        encoded = os.fsencode(tar.name)
        if encoded.decode("utf-8", "ignore") != tar.name or len(encoded) > MAX_NAME_BYTES:
            raise UserError(
                f"--tars {pattern}: {tar.name!r}: expected a name in UTF-8 of {MAX_NAME_BYTES} bytes at most; rename it"
            )
        if not os.path.samestat(_stat(names.setdefault(tar.name, tar)), _stat(tar)):
            raise UserError(f"--tars {pattern}: {names[tar.name]} and {tar} have the same name; adopt each folder by itself")
    return list(names.values())


def _stat(tar: Path) -> os.stat_result:
    return tar.stat() if tar.exists() else tar.lstat()


def adopt(pattern: str, out: Path) -> int:
    """Links the tars into DIR/shards and leaves DIR/mirror.json; the same command takes up new ones. Returns how many there are.

    Raises:
        UserError: no tars, a folder of downloaded rows, another tar of the same name in it, or a file system without links.
    """
    tars = find_tars(pattern, out)
    if (out / "canonical").exists() or (out / "download.json").exists():
        raise UserError(f"--out {out}: holds rows that were curated and downloaded; choose another folder")
    shards = out / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, {"tars": pattern})
    unusable = _never_usable(out)
    for tar in tars:
        link = shards / tar.name
        if link.exists() and tar.exists() and link.samefile(tar):
            continue
        if link.is_symlink() and not link.exists() or link.name in unusable:
            link.unlink(missing_ok=True)  # what it led to has moved, or was downloaded again and is another file now
        if link.exists():
            raise UserError(f"{link}: there already, and not {tar}; choose another --out, or delete it")
        _link(tar, link)
    return len(list(shards.glob("*.tar")))


def _link(tar: Path, link: Path) -> None:
    """Hard where the file system allows it, else symbolic; of what `tar` leads to, if it is a link itself: as a relative one, of a
    hub's cache, it would lead nowhere from here."""
    try:
        os.link(tar.resolve(strict=True), link)
    except OSError:  # another file system, or one without hard links; or there is nothing yet
        try:
            link.symlink_to(tar)
        except OSError as error:
            raise UserError(
                f"{link}: neither a hard nor a symbolic link to {tar} can be made ({error.strerror}); choose an --out on another "
                f"file system, or put the tars into {link.parent} and give that as the folder of tars"
            ) from None


def _never_usable(out: Path) -> set[str]:
    """Names of tars that the last verification could not use and no earlier one had used."""
    try:
        damaged = json.loads((out / "manifest" / "verify.json").read_text())["damaged"]
        return {Path(entry["path"]).name for entry in damaged if not entry.get("sha256")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
