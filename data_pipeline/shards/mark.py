"""Near duplicates across data sets, and what is in evaluation sets: marked in the index with the reason, never cut out of a tar.

Pictures are compared by the perceptual hash that `verify` took of each stored one, captions by their letters and digits. Marks are
made anew each time: those of an earlier run go first.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.duck import Duck
from data_pipeline.errors import UserError, to_run
from data_pipeline.files import sha256_file
from data_pipeline.progress import Progress
from data_pipeline.shards.manifest import (
    CAPTION_IN_EVALUATION,
    IN_EVALUATION,
    MARKS,
    NEAR_DUPLICATE,
    Manifest,
    ManifestError,
    write_index,
)
from data_pipeline.shards.verify import read_summary, write_summary

__all__ = ["CAPTION_IN_EVALUATION", "IN_EVALUATION", "MARKS", "NEAR_DUPLICATE", "bands", "mark", "near"]
MOST_BITS = 15
COMPARED_AT_ONCE = 1 << 22


def mark(
    folders: Sequence[Path],
    evaluation: Sequence[Path] = (),
    duplicate_bits: int = 0,
    evaluation_bits: int = 6,
    memory_limit: str = "4GB",
    write: bool = True,
) -> dict[Path, dict[str, int]]:
    """Sets `keep` and `reason` in the indices of `folders`, and writes their manifests and verify.json anew.

    Killed at any moment it leaves the tars as they are, and manifests that hold or are refused until the command ran again.

    Args:
        write: False only counts; the folders stay as they are.

    Returns:
        By folder the rows marked, by reason.

    Raises:
        UserError: no folder, an unverified one, one given twice, bits out of range, or a folder of which nothing would be left.
    """
    if not folders:
        raise UserError("expected at least one data set folder")
    for name, bits, least in (("--duplicate-bits", duplicate_bits, -1), ("--evaluation-bits", evaluation_bits, 0)):
        if not least <= bits <= MOST_BITS:
            raise UserError(f"{name} {bits}: expected {least} to {MOST_BITS}")
    roots = [Path(folder).absolute() for folder in (*folders, *evaluation)]
    if len({root.resolve() for root in roots}) < len(roots):
        raise UserError("a folder is given twice: name each once, evaluation sets only with --evaluation")
    try:
        manifests = [Manifest.load(root) for root in roots]
    except ManifestError as error:
        raise UserError(str(error)) from None
    manifests, tests = manifests[: len(folders)], manifests[len(folders) :]
    pictures, captions = _evaluation_hashes(tests)
    if write:
        scratch = roots[0] / "manifest" / ".mark"
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        scratch.mkdir()
    else:
        scratch = Path(tempfile.mkdtemp(prefix="mark-"))
    try:
        total = (1 + write) * sum(len(manifest.shards) for manifest in manifests)
        with Duck(scratch, memory_limit, on_disk=True) as duck, Progress("mark", total, "shards") as bar:
            database = duck.connection
            database.execute("SET enable_progress_bar = false")
            database.execute("CREATE TABLE looked (place BIGINT, mark UTINYINT, phash UBIGINT)")
            first = 0
            for manifest in manifests:
                for table in _tables(manifest):
                    database.register("judged", _judged(table, first, pictures, captions, evaluation_bits))
                    database.execute("INSERT INTO looked SELECT * FROM judged")
                    first += table.num_rows
                    bar.advance()
            if duplicate_bits >= 0:
                bar.note("near duplicates")
                _find_duplicates(database, duplicate_bits)
            _refuse_empty(database, manifests)
            first, counts = 0, {}
            for folder, manifest in zip(folders, manifests, strict=True):
                counts[Path(folder)] = _write(database, manifest, first, bar) if write else _count(database, manifest, first)
                first += manifest.samples
        return counts
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tables(manifest: Manifest) -> Iterator[pa.Table]:
    """Every shard's whole index."""
    for shard in manifest.shards:
        try:
            table = pq.read_table(shard.index_path)
            table.select(["phash", "caption_hash"])
        except (OSError, KeyError, pa.ArrowException):
            raise UserError(
                f"{shard.index_path}: damaged, or of an older version; run: {to_run('verify', manifest.root)}"
            ) from None
        yield table


def _open_to_marks(table: pa.Table) -> np.ndarray:
    """Rows that are kept, or were not for a reason of this module."""
    return np.array([reason is None or reason in MARKS for reason in table["reason"].to_pylist()], dtype=bool)


def _hashes(table: pa.Table) -> np.ndarray:
    """uint64; 0 where the picture could not be decoded."""
    return np.array([int(text or "0", 16) for text in table["phash"].to_pylist()], dtype=np.uint64)


def _evaluation_hashes(manifests: Sequence[Manifest]) -> tuple[np.ndarray, set[str]]:
    pictures, captions = [np.empty(0, np.uint64)], set()
    for manifest in manifests:
        for table in _tables(manifest):
            rows = table.filter(pa.array(_open_to_marks(table)))
            pictures.append(_hashes(rows))
            captions.update(value for values in rows["caption_hash"].to_pylist() for value in values.split())
    return np.unique(np.concatenate(pictures)), captions


def _judged(table: pa.Table, first: int, pictures: np.ndarray, captions: set[str], bits: int) -> pa.Table:
    """place (counted through all folders), mark (its number in MARKS from 1, 0: none) and phash of the rows open to marks."""
    chosen = np.flatnonzero(_open_to_marks(table))
    rows = table.take(pa.array(chosen))
    phash = _hashes(rows)
    known = np.array([not captions.isdisjoint(values.split()) for values in rows["caption_hash"].to_pylist()], dtype=bool)
    marks = np.where(near(phash, pictures, bits), 1, np.where(known, 2, 0)).astype(np.uint8)
    return pa.table({"place": chosen + first, "mark": marks, "phash": phash})


def near(hashes: np.ndarray, others: np.ndarray, bits: int) -> np.ndarray:
    """Which of `hashes` differ from at least one of `others` in at most `bits` bits: bool, both uint64.

    Two hashes that differ in few bits are equal in one of `bits` + 1 pieces: only those that share a piece are compared.
    """
    found = np.zeros(len(hashes), dtype=bool)
    for low, width in bands(bits):
        mask = np.uint64((1 << width) - 1)
        own, pieces = (hashes >> np.uint64(low)) & mask, (others >> np.uint64(low)) & mask
        order = np.argsort(pieces)
        pieces = pieces[order]
        left = np.searchsorted(pieces, own, side="left")
        count = np.searchsorted(pieces, own, side="right") - left
        count[found] = 0
        ends = np.cumsum(count)
        start = 0
        while start < len(hashes):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + COMPARED_AT_ONCE, side="right")))
            which = np.repeat(np.arange(start, stop), count[start:stop])
            offset = np.arange(len(which)) - np.repeat(ends[start:stop] - count[start:stop] - before, count[start:stop])
            different = hashes[which] ^ others[order[left[which] + offset]]
            found[which[_bit_count(different) <= bits]] = True
            start = stop
    return found


def bands(bits: int) -> list[tuple[int, int]]:
    """(lowest bit, width) of `bits` + 1 pieces of 64 bits."""
    edges = [64 * number // (bits + 1) for number in range(bits + 2)]
    return [(low, high - low) for low, high in zip(edges, edges[1:], strict=False)]


def _bit_count(values: np.ndarray) -> np.ndarray:
    """Set bits of each uint64 (numpy has a function for it from 2.0 on)."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def _find_duplicates(database, bits: int) -> None:
    """Marks every row with an earlier near one, in order of `place`; rows that evaluation sets hold count for neither side."""
    database.execute("CREATE TABLE pictures AS SELECT phash, min(place) AS first FROM looked WHERE mark = 0 GROUP BY phash")
    database.execute("CREATE TABLE later (phash UBIGINT)")
    for low, width in bands(bits) if bits else ():
        piece = f"(({{0}}.phash >> {low}) & {(1 << width) - 1}::UBIGINT)"
        database.execute(f"""INSERT INTO later SELECT DISTINCT b.phash FROM pictures a JOIN pictures b
            ON {piece.format("a")} = {piece.format("b")} AND a.first < b.first
            WHERE bit_count(xor(a.phash, b.phash)) <= {bits}""")
    database.execute(f"""UPDATE looked SET mark = {MARKS.index(NEAR_DUPLICATE) + 1} FROM pictures
        WHERE looked.mark = 0 AND looked.phash = pictures.phash
        AND (looked.place > pictures.first OR looked.phash IN (SELECT phash FROM later))""")


def _refuse_empty(database, manifests: Sequence[Manifest]) -> None:
    first = 0
    for manifest in manifests:
        inside = f"place >= {first} AND place < {first + manifest.samples}"
        left = database.execute(f"SELECT count(*) FROM looked WHERE mark = 0 AND {inside}").fetchone()[0]
        if not left:
            raise UserError(
                f"{manifest.root}: nothing would be left of it, all is in the evaluation sets or in earlier folders; nothing was "
                "changed: is one of them a copy of it?"
            )
        first += manifest.samples


def _count(database, manifest: Manifest, first: int) -> dict[str, int]:
    """The rows of a folder by mark."""
    inside = f"mark > 0 AND place >= {first} AND place < {first + manifest.samples}"
    found = dict(database.execute(f"SELECT mark, count(*) FROM looked WHERE {inside} GROUP BY mark").fetchall())
    return {reason: found[number] for number, reason in enumerate(MARKS, 1) if number in found}


def _write(database, manifest: Manifest, first: int, bar: Progress) -> dict[str, int]:
    """Writes the indices that change, then the folder's manifest; returns the rows by mark."""
    rows, total = manifest.shards.table.to_pylist(), Counter()
    for row, table in zip(rows, _tables(manifest), strict=True):
        inside = f"place >= {first} AND place < {first + table.num_rows}"
        found = database.execute(f"SELECT place, mark FROM looked WHERE {inside}").fetchnumpy()
        reasons, keep = table["reason"].to_pylist(), table["keep"].to_pylist()
        for place, number in zip((found["place"] - first).tolist(), found["mark"].tolist(), strict=True):
            reasons[place], keep[place] = (MARKS[number - 1], False) if number else (None, True)
        total.update(reason for reason in reasons if reason in MARKS)
        if reasons != table["reason"].to_pylist():
            columns = {"keep": pa.array(keep, pa.bool_()), "reason": pa.array(reasons, pa.string())}
            for name, column in columns.items():
                table = table.set_column(table.schema.get_field_index(name), name, column)
            write_index(manifest.root, Path(row["index"]).stem, table)
        # also of an index that a run wrote which was killed before the manifest
        row |= {"kept": sum(keep), "index_sha256": sha256_file(manifest.root / row["index"])}
        first += table.num_rows
        bar.advance()
    write_summary(manifest.root, rows, read_summary(manifest.root)["damaged"], reused=len(rows))
    return {reason: total[reason] for reason in MARKS if total[reason]}
