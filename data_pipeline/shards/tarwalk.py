"""A strict walk over a tar: plain files with plain names, nothing else, whole to the last byte. Nothing is extracted.

tarfile itself stops quietly at the first damaged header; a shard read that way just looks shorter."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
MAX_PAX_BYTES = 1 << 16
PIECE_BYTES = 1 << 20
# What a pax header may say beside these would change where the data is or what it is called.
HARMLESS_PAX = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}


class TarError(ValueError):
    """The tar must not be used; says why and at which byte."""


@dataclass(frozen=True)
class Member:
    """One file inside a tar."""

    name: str
    """Its name; no folders, but in mirrors' tars."""
    offset: int
    """Byte of the tar at which its data begins."""
    size: int
    """Bytes of data."""
    is_link: bool = False
    """A link to another member or file, without data of its own; only in mirrors' tars."""


@dataclass
class Group:
    """Neighbouring members of one key: a sample, in webdataset's convention."""

    key: str
    """The name up to the first dot."""
    members: dict[str, Member] = field(default_factory=dict)
    """Extension -> member."""


def _check_name(name: str) -> None:
    if (
        not name
        or name.startswith(".")
        or "." not in name
        or not name.isascii()
        or not name.isprintable()
        or set(name) & set("/\\: ")
    ):
        raise TarError(f"member name {name!r} is not a plain file name KEY.EXTENSION")


def pax_records(data: bytes) -> dict[str, bytes]:
    """What an extended header says. Raises `TarError`."""
    records, rest = {}, data.rstrip(b"\0")
    while rest:
        try:
            length = int(rest.split(b" ", 1)[0])
            record = rest[:length]
            name, value = record.split(b" ", 1)[1].split(b"=", 1)
            records[name.decode("utf-8")] = value.removesuffix(b"\n")
        except (ValueError, IndexError, UnicodeDecodeError):
            raise TarError("damaged extended header") from None
        if length <= 0 or len(record) != length:
            raise TarError("damaged extended header")
        rest = rest[length:]
    return records


def read_header(block: bytes, position: int, size: int, errors: str = "strict") -> tarfile.TarInfo:
    """The header at byte `position` of a tar of `size` bytes. TarError: damaged, or what it announces is not there.

    Args:
        errors: what becomes of names that are not UTF-8, as of `bytes.decode`.
    """
    if len(block) < BLOCK:
        raise TarError(f"cut off at byte {size}: no end mark")
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", errors)
    except (tarfile.HeaderError, UnicodeDecodeError):
        raise TarError(f"damaged header at byte {position}") from None
    if info.size < 0 or position + BLOCK + info.size > size:
        raise TarError(f"cut off: {info.name!r} should end at byte {position + BLOCK + info.size}, the file has {size}")
    return info


def walk(file: BinaryIO) -> Iterator[Member]:
    """Members in order. TarError: damaged or missing blocks, anything but regular files, names with folders."""
    size = os.fstat(file.fileno()).st_size
    position = 0
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if len(block) == BLOCK and not any(block):
            if size - position < 2 * BLOCK or first_byte(file, position) is not None:
                raise TarError(f"damaged end mark at byte {position}")
            return
        info = read_header(block, position, size)
        data = position + BLOCK
        if info.type == tarfile.XHDTYPE:
            if info.size > MAX_PAX_BYTES or pax_records(file.read(info.size)).keys() - HARMLESS_PAX:
                raise TarError(f"extended header at byte {position} renames or resizes a member")
        elif info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            _check_name(info.name)
            yield Member(info.name, data, info.size)
        else:
            raise TarError(f"member {info.name!r} is not a regular file (type {info.type!r})")
        position = end_of(data, info.size)


def end_of(data: int, size: int) -> int:
    """Where the next header begins."""
    return data + -(-size // BLOCK) * BLOCK


def first_byte(file: BinaryIO, position: int) -> int | None:
    """Where from `position` on the first byte is that is not 0; None: nowhere."""
    file.seek(position)
    while piece := file.read(PIECE_BYTES):
        if rest := piece.lstrip(b"\0"):
            return position + len(piece) - len(rest)
        position += len(piece)
    return None


def groups(path: Path) -> Iterator[Group]:
    """Samples of a tar in order. A repeated extension starts a new group, so that nothing is overwritten quietly."""
    group: Group | None = None
    with open(path, "rb") as file:
        for member in walk(file):
            key, extension = member.name.split(".", 1)
            if group is None or group.key != key or extension in group.members:
                if group is not None:
                    yield group
                group = Group(key)
            group.members[extension] = member
    if group is not None:
        yield group


def count_samples(path: Path) -> int:
    """Number of samples of a tar that is whole; TarError otherwise."""
    return sum(1 for _ in groups(path))
