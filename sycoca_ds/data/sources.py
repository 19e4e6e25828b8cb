"""The data set folders of a run, their shards counted through."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.manifest import Manifest, Shard


@dataclass(frozen=True)
class Sources:
    """Verified manifests, in the order they were given."""

    manifests: tuple[Manifest, ...]

    @classmethod
    def load(cls, folders: Iterable[str | Path]) -> Sources:
        """Reads the manifest of every folder. Raises `ManifestError` for the first that is missing, empty or damaged."""
        return cls(tuple(Manifest.load(folder) for folder in folders))

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

    def place(self, shard: int) -> tuple[Manifest, int]:
        """(manifest, the shard's number in it) of a shard counted through all sources."""
        number = int(np.searchsorted(self._first, shard, side="right")) - 1
        return self.manifests[number], shard - int(self._first[number])

    def shard(self, number: int) -> Shard:
        manifest, own = self.place(number)
        return manifest.shards[own]
