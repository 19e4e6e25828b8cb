"""Opens every tar, decodes every image, and writes the manifest of what may be trained on. Believes nothing it has not
read."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

from data_pipeline.command_line import counted
from data_pipeline.errors import UserError, to_run
from data_pipeline.files import sha256_file, write_json
from data_pipeline.progress import Progress
from data_pipeline.shards.adopt import is_mirror

VERSION = 3
MIRROR_VERSION = 5
"""Raised when a check is added, so that indices of older checks are not reused; of downloaded tars, and of a mirror's."""


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Opens every tar of a data set folder, decodes every image, writes the index of each tar and the manifest."""

    data: Path
    """Data set folder: its shards/*.tar are read, its manifest/ is written."""
    processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""
    recheck: bool = False
    """Check every byte again, also of tars whose size and time of change are those of the last check."""
    accept_changed: bool = False
    """Take tars as they are now that were verified before and then changed by something else than the download; without it they
    are damaged."""
    dry_run: bool = False
    """Say what would be done, and what is done already; change nothing."""

    def run(self) -> int:
        if self.dry_run:
            print(plan(self.data, self.processes))
            return 0
        summary = verify(self.data, self.processes, self.recheck, self.accept_changed)
        print_summary(self.data, summary)
        return 1 if summary["damaged"] else 0


class Known(NamedTuple):
    """What is on record about a tar before it is looked at."""

    sha256: str | None = None
    """By the last manifest."""
    index_sha256: str | None = None
    """Of its index, by the last manifest."""
    downloaded: tuple[int, int] | None = None
    """Bytes and time of change as the download left it."""
    suspect: bool = False
    """Damaged the last time: its size and time of change are no proof."""

    def objection(self, sha256: str, stat: os.stat_result, last_seen: dict | None) -> str | None:
        """Why a tar with these bytes must not be used though they can be read: they are not those that were verified."""
        if self.sha256 in (None, sha256):
            return None
        seen = last_seen and (last_seen["sha256"], last_seen["bytes"], last_seen["mtime_ns"])
        if seen == (self.sha256, stat.st_size, stat.st_mtime_ns):
            return "its bytes changed since it was verified, its size and time did not (a failing disk?)"
        if self.downloaded == (stat.st_size, stat.st_mtime_ns):
            return None
        return f"changed since it was verified: sha256 {sha256[:12]}, the manifest says {self.sha256[:12]}"


def _version(root: Path) -> int:
    return MIRROR_VERSION if is_mirror(root) else VERSION


def _on_record(root: Path) -> dict[str, Known]:
    """What the last manifest and the download know, by name of the tar; empty without them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known: dict[str, Known] = {}
    try:
        record = json.loads((root / "download.json").read_text())["shards"]
        known = {f"{name}.tar": Known(downloaded=tuple(facts[:2])) for name, facts in record.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # a mirror, or a damaged record, which `download` names
    try:
        rows = pq.read_table(root / "manifest" / "shards.parquet", columns=["path", "sha256", "index_sha256"]).to_pylist()
    except (OSError, pa.ArrowException):
        rows = []
    try:  # what was wrong the last time stays on record until it is mended or accepted
        damaged = json.loads((root / "manifest" / "verify.json").read_text())["damaged"]
        rows += [entry | {"index_sha256": None, "suspect": True} for entry in damaged if entry.get("sha256")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    for row in rows:
        name = Path(row["path"]).name
        facts = {field: row[field] for field in ("sha256", "index_sha256", "suspect") if field in row}
        known[name] = known.get(name, Known())._replace(**facts)
    return known


def _last_seen(root: Path, tar: Path) -> dict | None:
    """version, bytes, mtime_ns and sha256 of the tar when its index was made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(root / "manifest" / "index" / f"{tar.stem}.parquet").metadata or {}
        seen = json.loads(metadata[b"verify"])
        return seen if {"version", "bytes", "mtime_ns", "sha256"} <= seen.keys() else None
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException):
        return None


def _read_reusable(root: Path, tar: Path, hashing: bool, known: str | None) -> dict | None:
    """The manifest row of a tar from its index, if that was made by these checks of these bytes: of the same size and
    time of change, or with `hashing` of the same sha256; and if it is the index that the last manifest knows, if any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / "manifest" / "index" / f"{tar.stem}.parquet"
    seen = _last_seen(root, tar)
    try:
        stat = tar.stat()
        if seen is None or seen["version"] != _version(root) or seen["bytes"] != stat.st_size:
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
            "several": seen.get("several", 0),
        }
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def check_shard(root: Path, name: str, known: Known) -> tuple[str, dict | None, str | None, bool]:
    """One tar, in a worker process: (name, manifest row or None, why it is damaged or None, taken from the last
    check)."""
    import pyarrow as pa

    from data_pipeline.shards.manifest import INDEX_SCHEMA, OPTIONAL, write_index
    from data_pipeline.shards.samples import check_tar
    from data_pipeline.shards.tarwalk import TarError

    tar = root / "shards" / name
    row = _read_reusable(root, tar, True, known.index_sha256)
    if row is not None:
        return name, row, None, True
    try:
        if tar.is_symlink() and not tar.exists():
            raise TarError(f"leads to {os.path.realpath(tar)}, which is not there")
        stat = tar.stat()
        digest = sha256_file(tar)
        rows = check_tar(tar, mirror=is_mirror(root))
        if tar.stat().st_mtime_ns != stat.st_mtime_ns:
            raise TarError("changed while it was read; is a download still running?")
        if objection := known.objection(digest, stat, _last_seen(root, tar)):
            raise TarError(objection)
    except (TarError, OSError) as error:
        return name, None, str(error), False
    several = sum("captions" in entry for entry in rows)
    seen = {"version": _version(root), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest, "several": several}
    schema = INDEX_SCHEMA
    if several:
        kind, one = OPTIONAL["captions"]
        schema, rows = schema.append(pa.field("captions", kind)), [{"captions": one} | entry for entry in rows]
    table = pa.Table.from_pylist(rows, schema.with_metadata({"verify": json.dumps(seen)}))
    index, index_sha256 = write_index(root, tar.stem, table)
    row = {
        "path": f"shards/{name}",
        "bytes": stat.st_size,
        "samples": len(rows),
        "kept": sum(entry["keep"] for entry in rows),
        "sha256": digest,
        "index": index,
        "index_sha256": index_sha256,
        "several": several,
    }
    return name, row, None, False


def die_with_parent() -> None:
    """In a process of a pool: ends it when the parent is gone, however it went; it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check_all(root: Path, names: list[str], known: dict[str, Known], processes: int, recheck: bool) -> Iterator[tuple]:
    """`check_shard` of every name, in any order; starts processes only if there is work for several."""
    todo = []
    for name in names:
        facts = known.get(name, Known())
        row = None if recheck or facts.suspect else _read_reusable(root, root / "shards" / name, False, facts.index_sha256)
        if row is None:
            todo.append(name)
            index = root / "manifest" / "index" / f"{Path(name).stem}.parquet"
            seen = _last_seen(root, root / "shards" / name)
            if seen and seen["sha256"] == facts.sha256 and facts.index_sha256 not in (None, sha256_file(index)):
                said = "is not the one that was verified; made again from the tar, without marks (run `mark` again)"
                print(f"changed: {index} {said}", file=sys.stderr, flush=True)
        else:
            yield name, row, None, True
    if processes == 1 or len(todo) <= 1:
        yield from (check_shard(root, name, known.get(name, Known())) for name in todo)
        return
    with ProcessPoolExecutor(min(processes, len(todo)), get_context("spawn"), die_with_parent) as pool:
        jobs = [pool.submit(check_shard, root, name, known.get(name, Known())) for name in todo]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool:
            fewer = max(1, processes // 2)
            raise UserError(f"{root}/shards: a checking process was killed (out of memory?); try --processes {fewer}") from None
        finally:
            pool.shutdown(cancel_futures=True)


def verify(folder: Path, processes: int, recheck: bool = False, accept_changed: bool = False) -> dict:
    """Checks all tars and writes the manifest and DIR/manifest/verify.json; returns the latter's content.

    verify.json: tars, reused, samples, kept, rejected {reason: n}, damaged [{path, reason, sha256 (as verified before, or
    null)}]. A damaged tar is named and
    left out: one that cannot be read, one that is on record but gone, and one whose bytes are others than those that were verified
    (unless the download replaced it, or with `accept_changed`). UserError: no tars, or nothing left to train on.
    """
    root, names = Path(folder).absolute(), tars_of(folder, processes)
    known = _on_record(root)
    marked = _marks(root)
    rows, reused = {}, 0
    if accept_changed:
        known |= {name: known[name]._replace(sha256=None) for name in names if name in known}
    damaged = {name: "is missing" for name in sorted(known.keys() - set(names))}
    again = "restore it as it was" if is_mirror(root) else "download again"
    anew = "mend the mirror and give the same command" if is_mirror(root) else "download again"
    mend = "download it to the mirror again, then the same command" if is_mirror(root) else f"delete it and {again}"
    for name, reason in damaged.items():
        print(f"damaged: {root / 'shards' / name}: {reason}; left out ({again})", file=sys.stderr, flush=True)
    kept = 0
    with Progress("verify", len(names), "shards") as bar:
        for name, row, reason, old in _check_all(root, names, known, processes, recheck):
            bar.advance()
            if row is None:
                damaged[name] = reason
                accept = "; or take it as it is: verify --accept-changed" if "changed since" in reason else ""
                print(f"damaged: {root / 'shards' / name}: {reason}; left out ({mend}{accept})", file=sys.stderr, flush=True)
            else:
                rows[name] = row
                reused += old
                kept += row["kept"]
            bar.note(f"{kept} samples kept")
    if several := sum(row["several"] for row in rows.values()):
        said = "evaluation takes all of them, training one an epoch, in turn"
        have = f"{counted(several, 'picture')} {'has' if several == 1 else 'have'} several captions, a line each"
        print(f"{root}: {have}: {said}", file=sys.stderr, flush=True)
    _drop_old_indices(root, rows.keys() | damaged.keys())
    summary = write_summary(
        root,
        [rows[name] for name in names if name in rows],
        [
            {"path": f"shards/{name}", "reason": reason, "sha256": known.get(name, Known()).sha256}
            for name, reason in sorted(damaged.items())
        ],
        reused,
    )
    if marked and not _marks(root):
        print(f"{root}: verified anew, so what `mark` had left out is in it again: run `mark` again", file=sys.stderr, flush=True)
    if not summary["kept"]:
        raise UserError(
            f"{root}/shards: no sample is left to train on ({len(damaged)} of {len(names)} tars damaged, rejected: "
            f"{summary['rejected'] or 'none'}); see {root / 'manifest' / 'verify.json'}, then {anew}"
        )
    return summary


def tars_of(folder: Path, processes: int) -> list[str]:
    """Names of the tars to check. Raises `UserError`: none, or no process to check them."""
    root = Path(folder).absolute()
    names = sorted(path.name for path in (root / "shards").glob("*.tar"))
    if not names and (root / "parts").is_dir():
        raise UserError(f"{root}: its tars are in its parts; verify those, then run: {to_run('merge', folder)}")
    if not names:
        raise UserError(f"{root / 'shards'}: no tars to verify; run first: {to_run('download', folder)}")
    if processes < 1:
        raise UserError(f"--processes {processes}: expected at least 1")
    return names


def plan(folder: Path, processes: int) -> str:
    """What `verify` would do. Raises `UserError` as it does before it begins."""
    names, shards = tars_of(folder, processes), Path(folder).absolute() / "shards"
    size = sum((shards / name).stat().st_size for name in names)
    known = sum((shards.parent / "manifest" / "index" / f"{Path(name).stem}.parquet").exists() for name in names)
    return (
        f"verify: {len(names)} tars of {size / 1e9:.3g} GB by {processes} processes; {known} were checked before, and are read "
        "again if their size or time of change is another one"
    )


def _marks(root: Path) -> bool:
    """Whether the last verification knows of samples that `mark` has left out."""
    from data_pipeline.shards.manifest import MARKS

    try:
        return not set(MARKS).isdisjoint(read_summary(root)["rejected"])
    except (UserError, KeyError, TypeError):
        return False


def read_summary(root: Path) -> dict:
    """verify.json. Raises `UserError`."""
    path = root / "manifest" / "verify.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or damaged; run: {to_run('verify', root)}") from None


def write_summary(root: Path, rows: Sequence[dict], damaged: Sequence[dict], reused: int) -> dict:
    """Writes the manifest of these shards and verify.json, and returns the latter's content."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from data_pipeline.shards.manifest import write_manifest

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


def _drop_old_indices(root: Path, tars: Collection[str]) -> None:
    """Deletes the indices of all but these tars. Those of damaged ones stay: they say what the tar was."""
    wanted = {Path(name).stem for name in tars}
    for path in (root / "manifest" / "index").glob("*.parquet"):
        if path.stem not in wanted:
            path.unlink()


def print_summary(folder: Path, summary: dict) -> None:
    print(
        f"{folder}: {summary['kept']} of {summary['samples']} samples kept in "
        f"{counted(summary['tars'] - len(summary['damaged']), 'shard')}; "
        f"{counted(len(summary['damaged']), 'damaged shard')}, {summary['reused']} unchanged since the last check",
        file=sys.stderr,
        flush=True,
    )
