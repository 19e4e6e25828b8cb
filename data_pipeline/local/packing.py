"""Pictures of a folder into tars as the download leaves them, through the same decoders and limits.

A picture with all its captions is one sample, and its shard depends on its name alone: a shard is written again only if a caption
or a file of it has changed, and what a killed command had finished stays. Beside DIR/shards/NNNNN.tar stands packed/NNNNN.json,
written after it: what it was made of.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import quote

from data_pipeline.files import atomic_path, sha256_text, write_json
from data_pipeline.local.listing import NO_FILE, TOO_LARGE, Sample
from data_pipeline.pictures import FetchError, PictureMaker, read_header
from data_pipeline.progress import Progress
from data_pipeline.shards.samples import MAX_MEMBER_BYTES
from data_pipeline.shards.verify import die_with_parent

VERSION = 2
"""Raised when a change of this code makes other tars of the same pictures."""
QUALITY = 95
"""JPEG's, as the download stores pictures."""


@dataclass(frozen=True)
class How:
    """What decides the content of a tar beside its rows; as `DownloadOptions`."""

    image_size: int
    min_image_size: int
    max_pixels: int


@dataclass(frozen=True)
class Packed:
    """One tar, and what did not get into it. What packed/NNNNN.json holds."""

    digest: str
    """Of its samples, their files' sizes and times of change, and `How`."""
    bytes: int
    mtime_ns: int
    samples: int
    captions: int
    """Of its samples together."""
    left_out: list[tuple[str, str, int]]
    """(file, reason, captions)."""


def cut(samples: Sequence[Sample], shards: int) -> list[list[Sample]]:
    """Samples by shard, each in the order of `Sample.place`."""
    found: list[list[Sample]] = [[] for _ in range(shards)]
    for sample in samples:
        found[int(sha256_text(sample.file)[:12], 16) % shards].append(sample)
    return [sorted(shard, key=lambda sample: sample.place) for shard in found]


def digest_of(samples: Sequence[Sample], how: How) -> str:
    return sha256_text(json.dumps([VERSION, asdict(how), [list(asdict(sample).values()) for sample in samples]]))


def pack(folder: Path, root: Path, shards: Sequence[Sequence[Sample]], how: How, processes: int) -> dict[str, Packed]:
    """Writes the tars that are not there already; {NNNNN: what it came to}, also of those without a sample, which have no tar."""
    names = [shard_name(number) for number in range(len(shards))]
    (root / "shards").mkdir(parents=True, exist_ok=True)
    for left in (root / "shards").glob(".*.tmp"):  # by a command that was killed
        left.unlink()
    done = finished(root, shards, how)
    todo = [(name, list(rows)) for name, rows in zip(names, shards, strict=True) if name not in done]
    with Progress("pack pictures", sum(map(len, shards)), "pictures") as bar:
        bar.set(sum(len(rows) for name, rows in zip(names, shards, strict=True) if name in done))
        for name, count, packed in _packed(folder, root, todo, how, processes):
            done[name] = packed
            bar.advance(count)
    return {name: done[name] for name in names}


def _packed(
    folder: Path, root: Path, todo: list[tuple[str, list[Sample]]], how: How, processes: int
) -> Iterator[tuple[str, int, Packed]]:
    if processes == 1 or len(todo) <= 1:
        for name, rows in todo:
            yield name, len(rows), pack_shard(folder, root, name, rows, how)
        return
    with ProcessPoolExecutor(min(processes, len(todo)), get_context("spawn"), die_with_parent) as pool:
        jobs = {pool.submit(pack_shard, folder, root, name, rows, how): (name, len(rows)) for name, rows in todo}
        try:
            for job in as_completed(jobs):
                yield *jobs[job], job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def shard_name(number: int) -> str:
    return f"{number:05d}"


def finished(root: Path, shards: Sequence[Sequence[Sample]], how: How) -> dict[str, Packed]:
    """The tars that are there already, of these samples; {NNNNN: what it came to}."""
    return {
        shard_name(number): packed
        for number, rows in enumerate(shards)
        if (packed := _finished(root, shard_name(number), rows, how))
    }


def _finished(root: Path, name: str, rows: Sequence[Sample], how: How) -> Packed | None:
    """The record of a tar that was made of these samples and is as it was left."""
    try:
        record = json.loads((root / "packed" / f"{name}.json").read_text())
        packed = Packed(**record | {"left_out": [tuple(pair) for pair in record["left_out"]]})
        if packed.digest != digest_of(rows, how):
            return None
        if packed.samples:
            facts = (root / "shards" / f"{name}.tar").stat()
            return packed if (facts.st_size, facts.st_mtime_ns) == (packed.bytes, packed.mtime_ns) else None
        return packed
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pack_shard(folder: Path, root: Path, name: str, rows: Sequence[Sample], how: How) -> Packed:
    """Writes one tar and its record. A picture is decoded once; where it has more captions than a sample may have, the further
    samples get its bytes from the tar."""
    tar, left_out, samples, captions = root / "shards" / f"{name}.tar", [], 0, 0
    make = PictureMaker(how.image_size, how.min_image_size, QUALITY, how.max_pixels)
    stored: dict[str, tuple[int, int, dict] | str] = {}
    with atomic_path(tar) as temporary:
        with open(temporary, "w+b") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as out:
            for row in rows:
                if row.file not in stored:
                    jpeg, stored[row.file] = _stored(folder, row.file, make, how)
                elif not isinstance(stored[row.file], str):
                    offset, size, _ = stored[row.file]
                    file.flush()
                    jpeg = os.pread(file.fileno(), size, offset)
                facts = stored[row.file]
                if isinstance(facts, str):
                    left_out.append((row.file, facts, len(row.captions)))
                    continue
                key = f"{name}{samples:05d}"
                offset = out.offset + tarfile.BLOCKSIZE
                if facts[0] < 0:
                    stored[row.file] = (offset, len(jpeg), facts[2])
                text = "\n".join(row.captions)
                record = facts[2] | {"uid": sha256_text(f"{facts[2]['url']}\0{text}")[:16], "key": key, "caption": text}
                if len(row.captions) > 1:
                    record["captions"] = len(row.captions)
                for suffix, data in (("jpg", jpeg), ("txt", text.encode()), ("json", json.dumps(record).encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
                samples, captions = samples + 1, captions + len(row.captions)
    if not samples:
        tar.unlink()
    facts = tar.stat() if samples else None
    size, mtime_ns = (facts.st_size, facts.st_mtime_ns) if facts else (0, 0)
    packed = Packed(digest_of(rows, how), size, mtime_ns, samples, captions, left_out)
    write_json(root / "packed" / f"{name}.json", asdict(packed))
    return packed


def _stored(folder: Path, name: str, make: PictureMaker, how: How) -> tuple[bytes, tuple[int, int, dict] | str]:
    """(the JPEG to store, (-1, its size, fields of its json)), or (nothing, why the file gives none)."""
    try:
        data = _read(folder / name)
        header = read_header(data, how.max_pixels)
        picture = make(data, header)
    except FetchError as error:
        return b"", error.reason
    except OSError as error:
        return b"", error.strerror or type(error).__name__
    # the bytes are part of the address: two folders may have the same names
    url = f"folder:{quote(os.fsencode(name))}#{hashlib.sha256(data).hexdigest()[:16]}"
    sizes = {field: getattr(picture, field) for field in ("width", "height", "original_width", "original_height")}
    return picture.jpeg, (-1, len(picture.jpeg), {"url": url} | sizes)


def _read(path: Path) -> bytes:
    """Raises `FetchError`, `OSError`: what is no file any more, or too large by now; a pipe is not waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise FetchError(NO_FILE)
        if facts.st_size > MAX_MEMBER_BYTES:
            raise FetchError(TOO_LARGE)
        if not facts.st_size:
            raise FetchError("empty file")
        return file.read(MAX_MEMBER_BYTES + 1)


def failures(packed: dict[str, Packed]) -> Counter[str]:
    """Samples by reason."""
    return Counter(reason for one in packed.values() for _, reason, _ in one.left_out)
