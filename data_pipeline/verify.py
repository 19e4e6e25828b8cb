"""Opens every tar, decodes every image, and writes the manifest of what may be trained on. Believes nothing it has not
read."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from data_pipeline.captions import caption_hash
from data_pipeline.errors import UserError
from data_pipeline.files import image_id, sha256_file, sha256_text, write_json
from data_pipeline.progress import Progress

VERSION = 2
"""Raised when a check is added, so that indices of older checks are not reused."""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_MEMBER_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
MAX_TEXT_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Opens every tar of a data set folder, decodes every image, writes the index of each tar and the manifest."""

    data: Path
    """Data set folder: its shards/*.tar are read, its manifest/ is written."""
    processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""
    recheck: bool = False
    """Check every byte again, also of tars whose size and time of change are those of the last check."""

    def run(self) -> int:
        summary = verify(self.data, self.processes, self.recheck)
        print_summary(self.data, summary)
        return 0


def phash(gray: np.ndarray) -> str:
    """64-bit perceptual hash of a uint8 (H, W) picture as 16 hex digits: signs of the low 8 x 8 DCT terms of its 32 x
    32 reduction against their median (as the imagehash package's phash)."""
    import cv2

    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8]
    bits = (low > np.median(low)).reshape(-1)
    return np.packbits(bits).tobytes().hex()


def check_sample(key: str, image: bytes | None, text: bytes | None, meta: bytes | None, mirror: str | None = None) -> dict:
    """Index fields of one sample (all but offsets), `keep` and `reason`; a broken sample is described, never raised.

    Args:
        mirror: name of a tar that somebody else made (`adopt`): what its json does not say is derived from the names.
    """
    import cv2

    from data_pipeline.fetch import FetchError, check_image

    row = {
        "key": key,
        "uid": "",
        "url": "",
        "image_id": "",
        "width": 0,
        "height": 0,
        "caption_chars": 0,
        "caption_hash": "",
        "phash": "",
        "keep": False,
        "reason": None,
    }
    if mirror is not None:
        meta = mirrored(key, meta, mirror)
    if image is None or text is None or meta is None:
        missing = [name for name, data in (("image", image), ("caption", text), ("json", meta)) if data is None]
        return row | {"reason": f"no {' and no '.join(missing)}"}
    try:
        record = json.loads(meta)
        uid, url = record["uid"], record["url"]
        if not isinstance(url, str) or not isinstance(uid, str) or len(uid) != 16 or set(uid) - set("0123456789abcdef"):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        return row | {"reason": "json without uid and url"}
    row |= {"uid": uid, "url": url, "image_id": image_id(url)}
    try:
        caption = text.decode("utf-8")
    except UnicodeDecodeError:
        return row | {"reason": "caption is not UTF-8"}
    row |= {"caption_chars": len(caption), "caption_hash": caption_hash(caption)}
    if not caption.strip():
        return row | {"reason": "empty caption"}
    try:
        check_image(image, MAX_PIXELS)
    except FetchError as error:
        return row | {"reason": error.reason}
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        return row | {"reason": "image cannot be decoded"}
    row["height"], row["width"] = pixels.shape[:2]
    row["phash"] = phash(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))
    if mirror is None and (record.get("width"), record.get("height")) != (row["width"], row["height"]):
        return row | {"reason": "size differs from its json"}
    return row | {"keep": True}


def mirrored(key: str, meta: bytes | None, tar: str) -> bytes:
    """A mirror's json as verification expects it: its url if it has one, and a uid of ours, since theirs repeat in every tar."""
    try:
        record = json.loads(meta or b"{}")
        url = record.get("url")
    except (ValueError, AttributeError, RecursionError):
        url = None
    if not isinstance(url, str) or not url:
        url = f"wds:{tar}/{key}"
    return json.dumps({"uid": sha256_text(f"{tar}/{key}")[:16], "url": url}).encode()


def check_tar(path: Path, mirror: bool = False) -> list[dict]:
    """Rows of the index of one tar (manifest.INDEX_SCHEMA), in tar order. TarError when the tar must not be used."""
    from data_pipeline.tarwalk import groups

    rows, keys, uids = [], set(), set()
    handle = os.open(path, os.O_RDONLY)
    try:
        for group in groups(path):
            images = [name for name in IMAGE_EXTENSIONS if name in group.members]
            members = [group.members.get(name) for name in (images[0] if len(images) == 1 else "", "txt", "json")]
            too_big = [
                member
                for member, most in zip(members, (MAX_MEMBER_BYTES, MAX_TEXT_BYTES, MAX_TEXT_BYTES), strict=True)
                if member is not None and member.size > most
            ]
            image, text, meta = [
                None if member is None or too_big else os.pread(handle, member.size, member.offset) for member in members
            ]
            row = check_sample(group.key, image, text, meta, path.stem if mirror else None)
            if too_big:
                row |= {"keep": False, "reason": "member too large"}
            elif group.key in keys:
                row |= {"keep": False, "reason": "duplicate key"}
            elif row["keep"] and row["uid"] in uids:
                row |= {"keep": False, "reason": "duplicate uid"}
            keys.add(group.key)
            uids.add(row["uid"])
            for name, member in zip(("image", "text"), members, strict=False):
                row[f"{name}_offset"] = -1 if member is None else member.offset
                row[f"{name}_bytes"] = 0 if member is None else member.size
            rows.append(row)
    finally:
        os.close(handle)
    return rows


def _known_indices(root: Path) -> dict[str, str]:
    """sha256 of each tar's index as the last manifest has it; empty without one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(root / "manifest" / "shards.parquet", columns=["path", "index_sha256"])
        return {Path(name).name: digest for name, digest in zip(*table.to_pydict().values(), strict=True)}
    except (OSError, pa.ArrowException):
        return {}


def _read_reusable(root: Path, tar: Path, hashing: bool, known: str | None) -> dict | None:
    """The manifest row of a tar from its index, if that was made by these checks of these bytes: of the same size and
    time of change, or with `hashing` of the same sha256; and if it is the index that the last manifest knows, if any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / "manifest" / "index" / f"{tar.stem}.parquet"
    try:
        metadata = pq.read_schema(path).metadata or {}
        seen = json.loads(metadata.get(b"verify", b"{}"))
        stat = tar.stat()
        if seen.get("version") != VERSION or seen.get("bytes") != stat.st_size:
            return None
        if (sha256_file(tar) != seen["sha256"]) if hashing else (seen["mtime_ns"] != stat.st_mtime_ns):
            return None
        digest = sha256_file(path)
        if digest != (known or digest):
            return None
        keep = pq.read_table(path, columns=["keep"])["keep"].to_pylist()
        return {
            "path": f"shards/{tar.name}",
            "bytes": stat.st_size,
            "samples": len(keep),
            "kept": sum(keep),
            "sha256": seen["sha256"],
            "index": f"manifest/index/{path.name}",
            "index_sha256": digest,
        }
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def check_shard(root: Path, name: str, known: str | None) -> tuple[str, dict | None, str | None, bool]:
    """One tar, in a worker process: (name, manifest row or None, why it is damaged or None, taken from the last
    check)."""
    import pyarrow as pa

    from data_pipeline.manifest import INDEX_SCHEMA, write_index
    from data_pipeline.tarwalk import TarError

    tar = root / "shards" / name
    row = _read_reusable(root, tar, True, known)
    if row is not None:
        return name, row, None, True
    try:
        stat = tar.stat()
        digest = sha256_file(tar)
        rows = check_tar(tar, mirror=(root / "mirror.json").exists())
        if tar.stat().st_mtime_ns != stat.st_mtime_ns:
            raise TarError("changed while it was read; is a download still running?")
    except (TarError, OSError) as error:
        (root / "manifest" / "index" / f"{tar.stem}.parquet").unlink(missing_ok=True)
        return name, None, str(error), False
    seen = {"version": VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
    table = pa.Table.from_pylist(rows, INDEX_SCHEMA.with_metadata({"verify": json.dumps(seen)}))
    index, index_sha256 = write_index(root, tar.stem, table)
    row = {
        "path": f"shards/{name}",
        "bytes": stat.st_size,
        "samples": len(rows),
        "kept": sum(entry["keep"] for entry in rows),
        "sha256": digest,
        "index": index,
        "index_sha256": index_sha256,
    }
    return name, row, None, False


def _die_with_parent() -> None:
    """In a checking process: ends it when the parent is gone, however it went; it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check_all(root: Path, names: list[str], processes: int, recheck: bool) -> Iterator[tuple]:
    """`check_shard` of every name, in any order; starts processes only if there is work for several."""
    todo, known = [], _known_indices(root)
    for name in names:
        row = None if recheck else _read_reusable(root, root / "shards" / name, False, known.get(name))
        if row is None:
            todo.append(name)
            index = root / "manifest" / "index" / f"{Path(name).stem}.parquet"
            if index.exists() and name in known and sha256_file(index) != known[name]:
                said = "is not the one that was verified; made again from the tar, without marks (run `mark` again)"
                print(f"changed: {index} {said}", file=sys.stderr, flush=True)
        else:
            yield name, row, None, True
    if processes == 1 or len(todo) <= 1:
        yield from (check_shard(root, name, known.get(name)) for name in todo)
        return
    with ProcessPoolExecutor(min(processes, len(todo)), get_context("spawn"), _die_with_parent) as pool:
        jobs = [pool.submit(check_shard, root, name, known.get(name)) for name in todo]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool:
            fewer = max(1, processes // 2)
            raise UserError(f"{root}/shards: a checking process was killed (out of memory?); try --processes {fewer}") from None
        finally:
            pool.shutdown(cancel_futures=True)


def verify(folder: Path, processes: int, recheck: bool = False) -> dict:
    """Checks all tars and writes the manifest and DIR/manifest/verify.json; returns the latter's content.

    verify.json: tars, reused, samples, kept, rejected {reason: n}, damaged [{path, reason}]. A damaged tar is named and
    left out. UserError: no tars, or nothing left to train on.
    """
    root = Path(folder).absolute()
    names = sorted(path.name for path in (root / "shards").glob("*.tar"))
    if not names and (root / "parts").is_dir():
        raise UserError(f"{root}: its tars are in its parts; verify those, then run: python -m data_pipeline merge --data {folder}")
    if not names:
        raise UserError(f"{root / 'shards'}: no tars to verify; run first: python -m data_pipeline download --data {folder}")
    if processes < 1:
        raise UserError(f"--processes {processes}: expected at least 1")
    rows, damaged, reused = {}, {}, 0
    with Progress("verify", len(names), "shards") as bar:
        for name, row, reason, old in _check_all(root, names, processes, recheck):
            bar.advance()
            if row is None:
                damaged[name] = reason
                print(
                    f"damaged: {root / 'shards' / name}: {reason}; left out (delete it and download again)",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                rows[name] = row
                reused += old
            bar.note(f"{sum(entry['kept'] for entry in rows.values())} samples kept")
    _drop_old_indices(root, rows)
    summary = write_summary(
        root,
        [rows[name] for name in names if name in rows],
        [{"path": f"shards/{name}", "reason": reason} for name, reason in sorted(damaged.items())],
        reused,
    )
    if not summary["kept"]:
        raise UserError(
            f"{root}/shards: no sample is left to train on ({len(damaged)} of {len(names)} tars damaged, rejected: "
            f"{summary['rejected'] or 'none'}); see {root / 'manifest' / 'verify.json'}, then download again"
        )
    return summary


def read_summary(root: Path) -> dict:
    """verify.json. Raises `UserError`."""
    path = root / "manifest" / "verify.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or damaged; run: python -m data_pipeline verify --data {root}") from None


def write_summary(root: Path, rows: Sequence[dict], damaged: Sequence[dict], reused: int) -> dict:
    """Writes the manifest of these shards and verify.json, and returns the latter's content."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from data_pipeline.manifest import write_manifest

    rejected: Counter[str] = Counter()
    for row in rows:
        if row["kept"] < row["samples"]:
            counts = pc.value_counts(pq.read_table(root / row["index"], columns=["reason"])["reason"].drop_null())
            rejected.update({entry["values"]: entry["counts"] for entry in counts.to_pylist()})
    write_manifest(root, rows)
    summary = {
        "tars": len(rows) + len(damaged),
        "reused": reused,
        "samples": sum(row["samples"] for row in rows),
        "kept": sum(row["kept"] for row in rows),
        "rejected": dict(sorted(rejected.items())),
        "damaged": list(damaged),
    }
    write_json(root / "manifest" / "verify.json", summary)
    return summary


def _drop_old_indices(root: Path, rows: dict) -> None:
    wanted = {Path(row["index"]).name for row in rows.values()}
    for path in (root / "manifest" / "index").glob("*.parquet"):
        if path.name not in wanted:
            path.unlink()


def print_summary(folder: Path, summary: dict) -> None:
    print(
        f"{folder}: {summary['kept']} of {summary['samples']} samples kept in "
        f"{summary['tars'] - len(summary['damaged'])} shards; "
        f"{len(summary['damaged'])} damaged shards, {summary['reused']} unchanged since the last check",
        file=sys.stderr,
        flush=True,
    )
