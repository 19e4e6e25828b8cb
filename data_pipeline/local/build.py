"""A folder of pictures into the shards of a data set folder: listed, packed, recorded. The same command resumes."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.command_line import counted, other_options
from data_pipeline.errors import UserError
from data_pipeline.files import atomic_path, check_folder, make_folder, no_folder, write_json
from data_pipeline.local.captions import read_captions
from data_pipeline.local.listing import EMPTY, TOO_LONG, TWICE, Listing, list_samples
from data_pipeline.local.packing import How, cut, failures, finished, pack, shard_name
from data_pipeline.lock import only_one
from data_pipeline.shards.manifest import remove_manifest

FORMAT = 1
RECORD = "pictures.json"
LEFT_OUT = "left_out.jsonl"
NAMED = 3
"""Files that are named on stderr for each reason; all stand in `LEFT_OUT`."""
OF_A_ROW = (EMPTY, TOO_LONG, TWICE)
"""Reasons that cost a picture this caption only."""
LeftOut = Counter[tuple[str, str]]
"""Rows by (file, reason)."""


def is_local(folder: Path) -> bool:
    """Whether a data set folder was made of pictures of this machine."""
    return (folder / RECORD).exists()


def read_record(folder: Path) -> dict:
    """pictures.json: settings, source, where captions come from, rows_in, dropped {reason: pictures}, joined: rows that are further
    captions of a picture. Raises `UserError`: damaged."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
        if record["format"] == FORMAT and isinstance(record["settings"], dict):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: damaged; delete {folder} and build it again") from None


def planned(
    pictures: Path,
    captions: str | None,
    out: Path,
    how: How,
    shard_size: int,
    file_col: str | None,
    caption_col: str | None,
    splits: Sequence[str] = (),
) -> list[str]:
    """What `pack_folder` would do, and what it has done already, in lines; no picture is opened. Arguments and errors as there."""
    _check_places(pictures, out)
    check_folder(out / "shards")
    words, listing = _listed(pictures, captions, file_col, caption_col, splits)
    _, count = _settled(pictures, out, listing, how, shard_size)
    captions = counted(sum(len(sample.captions) for sample in listing.samples), "caption")
    lines = [f"pack: {counted(len(listing.samples), 'picture')} with {captions} of {pictures}, by {words}, into {out / 'shards'}"]
    shards = cut(listing.samples, count)
    there = finished(out, shards, how)
    if there:
        done = sum(len(rows) for number, rows in enumerate(shards) if shard_name(number) in there)
        lines.append(f"  packed already: {counted(done, 'picture')}, in {len(there)} of {counted(len(shards), 'tar')}")
    return lines + [f"  left out: {_told(listing.dropped)}"] * bool(listing.dropped)


def _check_places(pictures: Path, out: Path) -> None:
    """Raises `UserError`: no such folder, or a place that holds other things."""
    if not pictures.is_dir():
        raise UserError(f"--pictures {pictures}: {no_folder(pictures)}")
    if out.resolve() == pictures.resolve():
        raise UserError(f"--out {out}: is the folder of the pictures; choose another")
    if (out / "canonical").exists() or (out / "mirror.json").exists():
        raise UserError(f"--out {out}: holds rows that were downloaded, or a mirror's tars; choose another folder")


def _settled(pictures: Path, out: Path, listing: Listing, how: How, shard_size: int) -> tuple[dict, int]:
    """What the shards are made with, and the number of tars, that of the first build. Raises `UserError`: other settings than those
    of the shards that are there, or shards that nothing is known of."""
    settings, shards = {"pictures": str(pictures.resolve()), **vars(how)}, math.ceil(len(listing.samples) / shard_size)
    if is_local(out):
        before = read_record(out)["settings"]
        differs = other_options(before, settings)
        if differs:
            raise UserError(f"{out}: was made with {differs}; give the same as then, or choose another folder")
        shards = before["shards"]
    elif any((out / "shards").glob("*")):
        raise UserError(f"{out / 'shards'}: holds files but there is no {RECORD}; delete it or choose another folder")
    return settings, shards


def _listed(
    pictures: Path, captions: str | None, file_col: str | None, caption_col: str | None, splits: Sequence[str]
) -> tuple[str, Listing]:
    """Where captions come from, and the pictures that have one. Raises `UserError`: none has."""
    words, pairs = read_captions(pictures, captions, file_col, caption_col, splits)
    listing = list_samples(pictures, pairs)
    if not listing.samples:
        why = _told(listing.dropped)
        ways = "give --captions TABLE, put NAME.txt beside NAME.jpg, or sort the pictures into folders that are called like classes"
        told = f"({why}; captions are {words}): {ways}" if why else "(nothing there)"
        raise UserError(f"--pictures {pictures}: no picture with a caption {told}")
    return words, listing


def pack_folder(
    pictures: Path,
    captions: str | None,
    out: Path,
    how: How,
    shard_size: int,
    processes: int,
    file_col: str | None = None,
    caption_col: str | None = None,
    splits: Sequence[str] = (),
) -> dict:
    """Writes DIR/shards, and returns download.json's content.

    Args:
        shard_size: samples of a tar, about; the number of tars is that of the first build.
        captions, file_col, caption_col, splits: as of `read_captions`.

    Raises:
        UserError: no such folder or table, other settings than those of the shards that are there, nothing to take.
    """
    _check_places(pictures, out)
    words, listing = _listed(pictures, captions, file_col, caption_col, splits)
    print(f"{pictures}: {words}", file=sys.stderr, flush=True)
    make_folder(out)
    with only_one(out / ".download.lock", f"{out}: another build is running in this folder; wait for it or end it"):
        settings, shards = _settled(pictures, out, listing, how, shard_size)
        record = {
            "format": FORMAT,
            "source": "folder",
            "settings": settings | {"shards": shards},
            "captions": words,
            "rows_in": listing.rows_in,
            "dropped": listing.dropped,
            "joined": listing.joined,
        }
        write_json(out / RECORD, record)
        packed = pack(pictures, out, cut(listing.samples, shards), how, processes)
        left_out = listing.left_out.copy()
        for file, reason, captions in (entry for one in packed.values() for entry in one.left_out):
            left_out[file, reason] += captions
        _write_left_out(out / LEFT_OUT, left_out)
        _tell_left_out(pictures, left_out, out / LEFT_OUT)
        failed, samples = failures(packed), sum(one.samples for one in packed.values())
        state = {
            "format": FORMAT,
            "settings": settings,
            "shards": {name: [one.bytes, one.mtime_ns, one.samples] for name, one in packed.items() if one.samples},
            "requested": len(listing.samples),
            "downloaded": samples,
            "captions": sum(one.captions for one in packed.values()),
            "failed": dict(failed.most_common()),
        }
        _forget_gone(out, set(state["shards"]))
        write_json(out / "download.json", state)
        if not samples:
            none = f"none of {counted(len(listing.samples), 'picture')} can be taken"
            raise UserError(f"--pictures {pictures}: {none} ({_told(state['failed'])})")
    return state


def _told(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _write_left_out(path: Path, left_out: LeftOut) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        for (name, reason), rows in left_out.items():
            file.write(json.dumps({"file": name, "reason": reason, "rows": rows}) + "\n")


def _tell_left_out(pictures: Path, left_out: LeftOut, path: Path) -> None:
    by_reason: dict[str, list[str]] = {}
    rows_of: Counter[str] = Counter()
    for (name, reason), rows in left_out.items():
        by_reason.setdefault(reason, []).append(name)
        rows_of[reason] += rows
    for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        files, rows = counted(len(names), "picture"), rows_of[reason]
        said = f"{counted(rows, 'caption')} of {files}" if reason in OF_A_ROW else files
        if reason not in OF_A_ROW and rows > len(names):
            said += f", {counted(rows, 'caption')}"
        shown = ", ".join(f"{name!a}" for name in names[:NAMED])
        print(f"{pictures}: {said} left out, {reason}: {shown}{', ...' if len(names) > NAMED else ''}", file=sys.stderr)
    if left_out:
        print(f"{pictures}: what was left out is listed in {path}", file=sys.stderr, flush=True)


def _forget_gone(out: Path, shards: set[str]) -> None:
    """A tar that no picture is left for is not damaged: the manifest that knows it goes, too."""
    try:
        known = {Path(entry).stem for entry in _manifest_paths(out)}
    except (OSError, ValueError):
        return
    if known - shards:
        print(
            f"{out}: all pictures of {counted(len(known - shards), 'tar')} are gone; verified anew, run `mark` again",
            file=sys.stderr,
            flush=True,
        )
        remove_manifest(out)


def _manifest_paths(out: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(out / "manifest" / "shards.parquet", columns=["path"])["path"].to_pylist()
