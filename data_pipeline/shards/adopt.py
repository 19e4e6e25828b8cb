"""Ready-made mirrors: tars that somebody else downloaded, verified and indexed where they are, without a download.

Mirrors like pixparse/cc12m-wds hold an image, a .txt and a .json a sample, as img2dataset writes them; the .json may be missing or
say little. What it does not say is derived: the uid from the tar's and the sample's name.
"""

from __future__ import annotations

import os
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import write_json

RECORD = "mirror.json"


def find_tars(pattern: str) -> list[Path]:
    """Tars of a folder or a glob, in name order. Raises `UserError`: none, or two of the same name."""
    import glob

    path = Path(pattern)
    found = sorted(path.glob("*.tar")) if path.is_dir() else sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    found = [tar.absolute() for tar in found if tar.suffix == ".tar" and tar.is_file() and not tar.name.startswith(".")]
    if not found:
        raise UserError(f"--tars {pattern}: no tars there; expected a folder with *.tar, or a glob in quotes")
    names: dict[str, Path] = {}
    for tar in found:
        if names.setdefault(tar.name, tar) != tar:
            raise UserError(f"--tars {pattern}: {names[tar.name]} and {tar} have the same name; adopt each folder by itself")
    return found


def adopt(pattern: str, out: Path) -> int:
    """Links the tars into DIR/shards and leaves DIR/mirror.json; the same command takes up new ones. Returns how many there are.

    Raises:
        UserError: no tars, a folder of downloaded rows, or another tar of the same name in it.
    """
    tars = find_tars(pattern)
    if (out / "canonical").exists() or (out / "download.json").exists():
        raise UserError(f"--out {out}: holds rows that were curated and downloaded; choose another folder")
    shards = out / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, {"tars": pattern})
    for tar in tars:
        link = shards / tar.name
        if link.exists() and link.samefile(tar):
            continue
        if link.is_symlink() and not link.exists():
            link.unlink()  # what it led to has moved
        if link.exists():
            raise UserError(f"{link}: there already, and not {tar}; choose another --out, or delete it")
        try:
            os.link(tar, link)
        except OSError:  # another file system, or one without hard links
            link.symlink_to(tar)
    return len(list(shards.glob("*.tar")))
