"""Ready-made mirrors: tars that somebody else downloaded, verified and indexed where they are, without a download.

Mirrors like pixparse/cc12m-wds hold an image, a .txt and a .json a sample, as img2dataset writes them; the .json may be missing or
say little. What it does not say is derived: the uid from the tar's and the sample's name and from what it holds.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import make_folder, write_json
from data_pipeline.paths import find

RECORD = "mirror.json"
CATALOGUES = (".parquet", ".tsv", ".csv", ".jsonl")
MAX_NAME_BYTES = 200
"""Of a tar; its index and what is written before it is whole have longer names, and file systems end at 255."""


def is_mirror(folder: Path) -> bool:
    """Whether a data set folder's tars are somebody else's."""
    return (folder / RECORD).exists()


def find_tars(pattern: str, out: Path | None = None, option: str = "--tars") -> list[Path]:
    """Tars of a folder or a glob, in name order, also links that lead nowhere: verification names them. One that is there under
    several paths counts once.

    Args:
        out: a data set folder whose own tars do not count, if there are others: a glob may reach it.
        option: by which the user gave the pattern.

    Raises:
        UserError: none, saying what there is instead; two of the same name, or a name that is not UTF-8 or too long.
    """
    path = Path(pattern)
    seen = _inside(path, option) if path.is_dir() else find(pattern, recursive=True)
    found = [tar.absolute() for tar in seen if tar.suffix == ".tar" and not tar.name.startswith(".")]
    found = [tar for tar in found if tar.is_file() or tar.is_symlink() and not tar.exists()]
    if out is not None:
        own = (out / "shards").resolve()
        found = [tar for tar in found if tar.parent.resolve() != own] or found
    if not found:
        raise UserError(f"{option} {pattern}: {_why_none(pattern, seen)}")
    names: dict[str, Path] = {}
    for tar in found:
        encoded = os.fsencode(tar.name)
        if encoded.decode("utf-8", "ignore") != tar.name or len(encoded) > MAX_NAME_BYTES:
            raise UserError(
                f"{option} {pattern}: {tar.name!r}: expected a name in UTF-8 of {MAX_NAME_BYTES} bytes at most; rename it"
            )
        if not os.path.samestat(_stat(names.setdefault(tar.name, tar)), _stat(tar)):
            raise UserError(f"{option} {pattern}: {names[tar.name]} and {tar} have the same name; adopt each folder by itself")
    return list(names.values())


def _inside(folder: Path, option: str) -> list[Path]:
    """What lies in a folder, in name order."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{option} {folder}: cannot be listed ({error.strerror}); expected a folder that this user may read"
        ) from None


def _why_none(pattern: str, seen: list[Path]) -> str:
    """Why a user who expected tars has none, and what to do: by what is there instead."""
    expected = "expected a folder with *.tar, or a glob in quotes"
    if not seen:
        empty = Path(pattern).is_dir()
        return f"{'an empty folder' if empty else 'nothing is there, and no name fits it as a pattern'}; {expected}"
    packed = next((path for path in seen if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", path.name)), None)
    if packed is not None:
        return f"no tars there, but compressed ones ({packed.name}); unpack them, samples are read from their places"
    catalogue = next((path for path in seen if path.suffix in CATALOGUES), None)
    if catalogue is not None:
        return (
            f"no tars there, but {catalogue.name}: of a catalogue of URLs `python -m data_pipeline build --source` makes tars, "
            "with the catalogue's name or generic; or give the folder of tars"
        )
    if any(next(path.glob("*.tar"), None) for path in seen if path.is_dir()):
        return f"no tars there, but in folders in it; give each by itself, or '{pattern.rstrip('/')}/*/*.tar'"
    return f"no tars there, but {seen[0].name}{f' and {len(seen) - 1} more' if len(seen) > 1 else ''}; {expected}"


def _stat(tar: Path) -> os.stat_result:
    return tar.stat() if tar.exists() else tar.lstat()


def adopt(pattern: str, out: Path, option: str = "--tars") -> int:
    """Links the tars into DIR/shards and leaves DIR/mirror.json; the same command takes up new ones. Returns how many there are.

    Raises:
        UserError: no tars, no folder to write, one of downloaded rows, another tar of the same name in it, or a file system without
            links.
    """
    tars = find_tars(pattern, out, option)
    if (out / "canonical").exists() or (out / "download.json").exists():
        raise UserError(f"--out {out}: holds rows that were curated and downloaded; choose another folder")
    shards = out / "shards"
    make_folder(out)
    make_folder(shards)
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
