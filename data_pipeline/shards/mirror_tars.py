"""Tars as other people's tools leave them: members in folders, with long or foreign names, in any order, behind one another.

Nothing is extracted, so a name is a label and no more. What webdataset passes over (folders, `._x` of macOS) is passed over; where
it would read less than is there without a word, the tar is refused.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipeline.catalogue.captions import is_blank
from data_pipeline.shards.tarwalk import BLOCK, Group, Member, TarError, end_of, first_byte, pax_records, read_header

MAX_EXTENDED_BYTES = 1 << 20
MAX_NAME = 4096
MAX_PADDING = 1 << 20
"""Most zeros behind a tar. tar pads to 10 kB; a download that was interrupted may have had its place reserved."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
PICTURES = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "gif", "bmp", "tif", "tiff", "avif", "heic", "jp2", "jxl", "svg")
TEXTS = ("txt", "text", "caption")
"""Extensions of captions, the first that is there."""
IN_JSON = ("caption", "text", "TEXT")
"""Under what name a json holds a caption."""
NO_TARS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the tar: run git lfs pull in the mirror"),
    (b"/annex/objects", "is a git-annex pointer, not the tar: run git annex get in the mirror"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it, samples are read from their places"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it, samples are read from their places"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it, samples are read from their places"),
    (b"BZh", "is compressed with bzip2: unpack it, samples are read from their places"),
    (b"PK\3\4", "is a zip archive, expected a tar"),
    (b"PAR1", "is a parquet file, expected a tar"),
    (b"<", "is a web page or XML, not the tar: download it again"),
    (b"{", "is JSON, not the tar (an error message?): download it again"),
)
"""How files begin that are called .tar and are none."""


def _walk(file: BinaryIO) -> Iterator[Member]:
    """Members in order, links included. TarError: damaged or missing blocks, devices, resized or climbing members."""
    size, position, long_name = os.fstat(file.fileno()).st_size, 0, None
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if not block and long_name is None:
            raise TarError(f"ends at byte {size} without an end mark: cut off, or never closed; if whole, append 1,024 zero bytes")
        if len(block) == BLOCK and not any(block):
            position = _behind_end_mark(file, position, size)
            if position is None:
                return
            continue
        info = read_header(block, position, size, "backslashreplace")
        data = position + BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if info.size > MAX_EXTENDED_BYTES:
                raise TarError(f"extended header at byte {position} of {info.size} bytes")
            said = file.read(info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = said.split(b"\0", 1)[0]
            elif info.type != tarfile.GNUTYPE_LONGLINK:
                records = pax_records(said)
                resized = any(name == "size" or name.startswith("GNU.sparse") for name in records)
                if resized or (info.type == tarfile.XGLTYPE and "path" in records):
                    raise TarError(f"extended header at byte {position} renames or resizes members; pack it again without it")
                long_name = records.get("path", long_name)
            position = end_of(data, info.size)
            continue
        name = info.name if long_name is None else long_name.decode("utf-8", "backslashreplace")
        long_name = None
        if info.type in REGULAR:
            yield Member(_checked(name), data, info.size)
            position = end_of(data, info.size)
        elif info.type in LINKS:
            yield Member(_checked(name), data, 0, is_link=True)
            position = data
        elif info.type == tarfile.DIRTYPE:
            position = data
        else:
            raise TarError(f"member {name!r} is not a regular file (type {info.type!r})")


def _behind_end_mark(file: BinaryIO, position: int, size: int) -> int | None:
    """Where another tar begins that was appended; None: there is nothing but padding."""
    found = first_byte(file, position)
    zeros = (size if found is None else found) - position
    if zeros > MAX_PADDING:
        raise TarError(f"has {zeros} zero bytes from byte {position} on: an interrupted download?")
    if found is None:
        return None
    start = position + (found - position) // BLOCK * BLOCK
    file.seek(start)
    try:
        read_header(file.read(BLOCK), start, size, "backslashreplace")
    except TarError:
        raise TarError(
            f"something that is no tar stands at byte {found}, behind the end mark: damaged, or appended; if whole, "
            f"cut it: truncate -s {start}"
        ) from None
    return start


def _refuse_others(start: bytes) -> None:
    """Raises `TarError` for a file that is called .tar and is something else that we know."""
    if not start:
        raise TarError("is empty: download it again")
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        begin = start.lstrip(b"\xef\xbb\xbf \r\n")
        if what := next((said for known, said in NO_TARS if begin.startswith(known)), None):
            raise TarError(what) from None


def _checked(name: str) -> str:
    """A member's name as a label. TarError: it leaves the folder, or is no name."""
    while name.startswith(("./", "/")):  # tar -P leaves the slash
        name = name.removeprefix(".").lstrip("/")
    if not name or len(name) > MAX_NAME or ".." in name.split("/"):
        raise TarError(f"member name {name[:100]!r} is not a path inside a folder")
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def mirror_groups(path: Path) -> Iterator[Group]:
    """Samples of a mirror's tar by key, wherever their members stand, in order of the first. Extensions are in lower case.

    Keys are webdataset's: the name up to the first dot behind the last slash. Where longer extensions make samples of their own
    (a.v2.jpg, a.v2.txt) the key goes on to the last dot. A key that comes again gets a number.

    Raises:
        TarError: the tar must not be used.
    """
    with open(path, "rb") as file:
        _refuse_others(file.read(BLOCK))
        groups: list[Group] = []
        newest: dict[str, Group] = {}
        count: dict[str, int] = {}
        for member in _walk(file):
            folder, slash, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not stem or not dot or folder.split("/", 1)[0] == "__MACOSX":
                continue
            key, extension = f"{folder}{slash}{stem}", extension.lower()
            if key not in newest or extension in newest[key].members:
                count[key] = count.get(key, 0) + 1
                newest[key] = Group(key if count[key] == 1 else f"{key} ({count[key]})")
                groups.append(newest[key])
            newest[key].members[extension] = member
    if not groups:
        raise TarError("holds no samples: no file KEY.EXTENSION is in it")
    for group in groups:
        yield from _parted(group)


def _parted(group: Group) -> Iterator[Group]:
    """A group as the samples that it is."""
    parts: dict[str, dict[str, Member]] = {}
    for extension, member in group.members.items():
        stem, _, last = extension.rpartition(".")
        parts.setdefault(stem, {})[last] = member
    plain = parts.pop("", {})
    whole = any(_has(part, PICTURES) and _has(part, TEXTS) for part in parts.values())
    if whole or not plain and any(sum(_has(part, kind) for part in parts.values()) > 1 for kind in (PICTURES, TEXTS)):
        if plain:
            yield Group(group.key, plain)
        for stem, part in parts.items():
            yield Group(f"{group.key}.{stem}", part)
        return
    last = [name.rpartition(".")[2] for name in group.members]
    pair = all(sum(name in kind for name in last) == 1 for kind in (PICTURES, TEXTS))
    if pair or not plain and len(set(last)) == len(last):  # a.image.jpg, a.caption.txt
        yield Group(group.key, dict(zip(last, group.members.values(), strict=True)) | plain)
    else:
        yield group


def _has(names: Iterable[str], wanted: tuple[str, ...]) -> bool:
    return any(name in wanted for name in names)


def caption_of(record: object) -> bool:
    """Whether a sample's json holds a caption."""
    return isinstance(record, dict) and any(isinstance(record.get(name), str) and not is_blank(record[name]) for name in IN_JSON)


def missing(group: Group, no_picture: bool, no_caption: bool, json_holds_it: bool) -> str:
    """Why a group is no sample: what was expected, and what there is instead."""
    dotted = any(name.rpartition(".")[2] in PICTURES for name in group.members if "." in name)
    said = []
    if no_picture:
        several = sum(name in PICTURES for name in group.members) > 1
        said.append("two pictures with one key" if several else "dots in the name behind its key" if dotted else "no image")
    if no_caption:
        instead = "caption only in the json (expected .txt)" if json_holds_it else "no caption"
        said.append("no caption but a class (.cls)" if "cls" in group.members and not json_holds_it else instead)
    return " and ".join(said)
