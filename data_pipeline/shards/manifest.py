"""The contract between data and training: which shards there are, and where in them every sample lies.

DIR/manifest/manifest.json is written last; without it there is no manifest. Needs pyarrow and numpy only."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.errors import UserError, to_run
from data_pipeline.files import atomic_path, no_folder, sha256_file, write_json

FORMAT = 1
ROWS_AT_ONCE = 4096
LEAVES_FOLDER = r"^/|(^|/)\.\.(/|$)"
DIGEST_COLUMNS = ("path", "bytes", "samples", "kept", "sha256", "index_sha256")
SHARD_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("samples", pa.int64()),
        ("kept", pa.int64()),
        ("sha256", pa.string()),
        ("index", pa.string()),
        ("index_sha256", pa.string()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("image_id", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
        ("text_offset", pa.int64()),
        ("text_bytes", pa.int64()),
        ("crc32", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption_chars", pa.int32()),
        ("caption_hash", pa.string()),
        ("phash", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
    ]
)


IN_EVALUATION = "picture of an evaluation set"
CAPTION_IN_EVALUATION = "caption of an evaluation set"
NEAR_DUPLICATE = "near-duplicate"
MARKS = (IN_EVALUATION, CAPTION_IN_EVALUATION, NEAR_DUPLICATE)
"""Reasons that `mark` gives, the first that applies."""
OPTIONAL = {"captions": (pa.int32(), 1)}
"""Columns that an index has where a row needs them: their type, and what holds without them. captions: how many the text holds, one
a line; caption_hash then has the hash of each, with blanks between."""


class ManifestError(UserError):
    """The manifest is missing, empty or damaged. Names the file and the command that mends it."""


@dataclass(frozen=True)
class Shard:
    """One tar and its index."""

    path: Path
    """The tar, absolute."""
    bytes: int
    """Its size."""
    samples: int
    """Samples in it, kept or not."""
    kept: int
    """Samples that training may use."""
    sha256: str
    """Of the tar."""
    index_path: Path
    """Its index, absolute."""
    index_sha256: str
    """Of the index."""


class Shards(Sequence[Shard]):
    """The rows of shards.parquet, each made when it is asked for: there may be hundreds of thousands."""

    def __init__(self, root: Path, table: pa.Table):
        self.root, self.table = root, table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number: int) -> Shard:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._shard(self.table.slice(number % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Shard]:
        for batch in self.table.to_batches(max_chunksize=ROWS_AT_ONCE):
            yield from map(self._shard, batch.to_pylist())

    def _shard(self, row: dict) -> Shard:
        paths = {"path": self.root / row["path"], "index_path": self.root / row["index"]}
        return Shard(**paths, **{name: row[name] for name in ("bytes", "samples", "kept", "sha256", "index_sha256")})


@dataclass(frozen=True)
class Manifest:
    """The shards of one data set folder, in a fixed order."""

    root: Path
    """The data set folder."""
    shards: Shards = field(compare=False)
    """In the order of shards.parquet."""
    digest: str
    """sha256 over the rows of shards.parquet: changes when any byte of any shard or index does."""
    _checked: set = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def load(cls, folder: str | Path, *, check_tars: bool = True) -> Manifest:
        """Reads DIR or DIR/manifest. ManifestError: missing, no kept sample, damaged, a tar missing or of another
        size; the last two are not looked at with `check_tars` false (another process has, or the tars are elsewhere)."""
        root = Path(folder).absolute()
        if root.name == "manifest" and (root / "manifest.json").exists():
            root = root.parent
        mend = f"run: {to_run('verify', root)}"
        seal, table_path = root / "manifest" / "manifest.json", root / "manifest" / "shards.parquet"
        if not root.is_dir():
            raise ManifestError(
                f"{root}: {no_folder(root)}; expected a data set folder; make one with: python -m data_pipeline "
                f"build --metadata CATALOGUE --out {root}"
            )
        if not seal.exists():
            raise ManifestError(f"{seal}: not there, the data set was not verified; {mend}")
        try:
            record = json.loads(seal.read_text())
            if record["format"] != FORMAT:
                raise ManifestError(f"{seal}: format {record['format']}, this version reads {FORMAT}; {mend}")
            table = pq.read_table(table_path, schema=SHARD_SCHEMA)
            digest = table_digest(table)
            if digest != record["digest"]:
                raise ManifestError(f"{table_path}: digest {digest[:12]}, manifest.json says {str(record['digest'])[:12]}; {mend}")
            for name in ("path", "index"):
                leaving = table[name].filter(pc.match_substring_regex(table[name], LEAVES_FOLDER))
                if len(leaving):
                    raise ValueError(f"path {leaving[0].as_py()!r} leaves the folder")
        except ManifestError:
            raise
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ManifestError(f"{table_path}: damaged ({' '.join(str(error).split())[:120]}); {mend}") from None
        if not pc.any(pc.greater(table["kept"], 0)).as_py():
            raise ManifestError(
                f"{seal}: empty, no kept sample in {table.num_rows} shards; see {root / 'funnel.html'} for what was "
                f"dropped, then {mend}"
            )
        for name, expected in zip(table["path"].to_pylist(), table["bytes"].to_pylist(), strict=True) if check_tars else ():
            try:
                size = os.stat(f"{root}/{name}").st_size
            except FileNotFoundError:
                raise ManifestError(f"{root / name}: is missing, the manifest says {expected} bytes; {mend}") from None
            if size != expected:
                raise ManifestError(f"{root / name}: has {size} bytes, the manifest says {expected} bytes; {mend}")
        return cls(root, Shards(root, table), digest)

    @functools.cached_property
    def kept_per_shard(self) -> np.ndarray:
        """int64 (shards,): kept samples by shard."""
        return self.shards.table["kept"].to_numpy()

    @property
    def kept(self) -> int:
        return int(self.kept_per_shard.sum())

    @property
    def samples(self) -> int:
        return pc.sum(self.shards.table["samples"]).as_py()

    @property
    def bytes(self) -> int:
        """Of all tars together."""
        return pc.sum(self.shards.table["bytes"]).as_py()

    def index(self, shard_number: int, columns: Sequence[str] | None = None, file: BinaryIO | None = None) -> pa.Table:
        """Kept rows of one shard's index, in tar order; by default its columns of INDEX_SCHEMA. Its sha256 is checked the first
        time. ManifestError: damaged.

        Args: file: the index, opened; None: it is read from its place."""
        shard = self.shards[shard_number]
        mend = f"run: {to_run('verify', self.root)}"
        try:
            data = shard.index_path.read_bytes() if file is None else file.read()
            if shard_number not in self._checked:
                found = hashlib.sha256(data).hexdigest()
                if found != shard.index_sha256:
                    raise ManifestError(
                        f"{shard.index_path}: sha256 {found[:12]}, the manifest says {shard.index_sha256[:12]}; {mend}"
                    )
                self._checked.add(shard_number)
            wanted = list(columns) if columns is not None else INDEX_SCHEMA.names
            there = pq.read_schema(pa.BufferReader(data)).names
            read = [name for name in dict.fromkeys([*wanted, "keep"]) if name in there or name not in OPTIONAL]
            table = pq.read_table(pa.BufferReader(data), columns=read)
            for name in set(wanted) - set(read):
                kind, value = OPTIONAL[name]
                table = table.append_column(name, pa.repeat(pa.scalar(value, kind), table.num_rows))
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{shard.index_path}: {' '.join(str(error).split())[:120]}; {mend}") from None
        table = table.filter(pc.equal(table["keep"], True)).select(wanted).replace_schema_metadata(None)
        if table.num_rows != shard.kept:
            raise ManifestError(f"{shard.index_path}: {table.num_rows} kept rows, the manifest says {shard.kept}; {mend}")
        return table


def table_digest(table: pa.Table) -> str:
    """sha256 over the rows of shards.parquet, in order (DIGEST_COLUMNS)."""
    digest = hashlib.sha256()
    for batch in table.select(DIGEST_COLUMNS).to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update((json.dumps(row) + "\n").encode())
    return digest.hexdigest()


def write_index(folder: Path, name: str, table: pa.Table) -> tuple[str, str]:
    """Writes DIR/manifest/index/<name>.parquet (whole or not at all); returns its path relative to DIR and its
    sha256."""
    path = Path(folder) / "manifest" / "index" / f"{name}.parquet"
    metadata, schema = table.schema.metadata, INDEX_SCHEMA
    for column, (kind, _) in OPTIONAL.items():
        schema = schema.append(pa.field(column, kind)) if column in table.column_names else schema
    with atomic_path(path) as temporary:
        pq.write_table(
            table.select(schema.names).cast(schema).replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
        )
        digest = sha256_file(temporary)
    return f"manifest/index/{name}.parquet", digest


def write_manifest(folder: str | Path, rows: Sequence[dict], indices: Sequence[pa.Table] | None = None) -> Manifest | None:
    """Writes shards.parquet, then manifest.json, and returns the manifest as read back (None if nothing is kept).

    Args: rows: path (relative to `folder`), bytes, samples, kept, sha256 of each shard, and index, index_sha256 as
    given by `write_index`; or without those two and with `indices`, a table (INDEX_SCHEMA) for each row.
    """
    root = Path(folder)
    rows = [dict(row) for row in rows]
    if indices is not None:
        for row, table in zip(rows, indices, strict=True):
            row["index"], row["index_sha256"] = write_index(root, PurePosixPath(row["path"]).stem, table)
    table = pa.Table.from_pylist(rows, SHARD_SCHEMA)
    with atomic_path(root / "manifest" / "shards.parquet") as temporary:
        # The old seal must not vouch for the new table, not even for a moment.
        (root / "manifest" / "manifest.json").unlink(missing_ok=True)
        pq.write_table(table, temporary)
    kept = sum(row["kept"] for row in rows)
    write_json(
        root / "manifest" / "manifest.json",
        {
            "format": FORMAT,
            "digest": table_digest(table),
            "samples": sum(row["samples"] for row in rows),
            "kept": kept,
            "shards": len(rows),
        },
    )
    return Manifest.load(root) if kept else None


def remove_manifest(folder: Path) -> None:
    """Takes the manifest away (its tars are about to change)."""
    (folder / "manifest" / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "manifest", ignore_errors=True)
