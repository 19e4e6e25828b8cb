"""The data set folders of a run, on this machine or behind a URL, their shards counted through."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.errors import UserError
from data_pipeline.shards.manifest import Manifest, ManifestError
from sycoca_ds.config import DataConfig
from sycoca_ds.data.storage import Remote, ShardCache, is_url, mirror


@dataclass(frozen=True)
class Sources:
    """Verified manifests, in the order they were given."""

    manifests: tuple[Manifest, ...]
    urls: tuple[str | None, ...]
    """Of the sources that are behind one; their manifests' folders are local copies without tars."""
    cache: ShardCache | None = None

    @classmethod
    def load(cls, folders: Iterable[str | Path], cache: ShardCache | None = None, *, check_tars: bool = True) -> Sources:
        """Reads the manifest of every folder.

        Args:
            folders: paths, or URLs that fsspec reads.
            check_tars: look whether every local tar is there with its size; one process of a run is enough.

        Raises:
            ManifestError: the first that is missing, empty or damaged.
            UserError: a URL without a cache, or that cannot be read.
        """
        manifests, urls = [], []
        for folder in folders:
            if not is_url(folder):
                manifests.append(Manifest.load(folder, check_tars=check_tars))
                urls.append(None)
                continue
            if cache is None:
                raise UserError(f"data.train = {folder}: shards behind a URL need data.cache, a folder on each machine's own disk")
            urls.append(str(folder).rstrip("/"))
            manifests.append(Manifest.load(mirror(urls[-1], cache), check_tars=False))
        return cls(tuple(manifests), tuple(urls), cache)

    @classmethod
    def of(cls, data: DataConfig, *, check_tars: bool = True) -> Sources:
        """Those of a run. Raises as `load`."""
        cache = None if data.cache is None else ShardCache(Path(data.cache).expanduser(), int(data.cache_gib * 2**30))
        return cls.load(data.train, cache, check_tars=check_tars)

    @property
    def kept(self) -> list[np.ndarray]:
        """For each source the kept samples of its shards, int64: what `Plan` is made of."""
        return [manifest.kept_per_shard for manifest in self.manifests]

    @property
    def samples(self) -> int:
        """Kept samples of all of them."""
        return sum(manifest.kept for manifest in self.manifests)

    @functools.cached_property
    def digest(self) -> str:
        """Changes when any byte of any shard or index does, or the order of the sources. Of one source: its manifest's."""
        digests = [manifest.digest for manifest in self.manifests]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @functools.cached_property
    def _first(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(manifest.shards) for manifest in self.manifests])])

    def _place(self, shard: int) -> tuple[int, int]:
        """(number of the source, the shard's number in it) of a shard counted through all sources."""
        number = int(np.searchsorted(self._first, shard, side="right")) - 1
        return number, shard - int(self._first[number])

    def remote(self, shard: int) -> tuple[Remote, Remote] | None:
        """(tar, index) of a shard behind a URL; None for a local one."""
        number, own = self._place(shard)
        url, manifest = self.urls[number], self.manifests[number]
        if url is None:
            return None
        facts = manifest.shards[own]
        tar, index = (f"{url}/{path.relative_to(manifest.root).as_posix()}" for path in (facts.path, facts.index_path))
        return Remote(tar, facts.bytes, facts.sha256), Remote(index, None, facts.index_sha256)

    def name(self, shard: int) -> str:
        """Path or URL of a shard's tar, for messages."""
        remote, (number, own) = self.remote(shard), self._place(shard)
        return remote[0].url if remote else str(self.manifests[number].shards[own].path)

    def open(self, shard: int) -> int:
        """A descriptor of a shard's tar; the caller closes it. Raises `OSError`."""
        remote, (number, own) = self.remote(shard), self._place(shard)
        return self.cache.open(remote[0]) if remote else os.open(self.manifests[number].shards[own].path, os.O_RDONLY)

    def index(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Kept rows of a shard's index, in tar order. Raises `OSError`, `ManifestError`."""
        remote, (number, own) = self.remote(shard), self._place(shard)
        if remote is None:
            return self.manifests[number].index(own, columns)
        with os.fdopen(self.cache.open(remote[1]), "rb") as file:
            try:
                return self.manifests[number].index(own, columns, file)
            except ManifestError as error:
                self.cache.forget(remote[1])
                raise OSError(f"{remote[1].url}: its copy was damaged, and is fetched anew ({error})") from error
