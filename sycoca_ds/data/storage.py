"""Shards that lie behind a URL: copied whole to a local disk, checked, shared by all processes of a machine, and bounded.

A folder `CACHE/files` holds copies under the sha256 of their contents, so that no copy can be stale. Whoever needs one that is not
there fetches it under a lock, while the others wait; the least recently used ones make room. A file that was opened stays readable
when its name goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError

log = logging.getLogger(__name__)

PAUSES = (1.0, 4.0, 15.0, 60.0)
"""Seconds before each further try to fetch a file; a store's hiccup must not become stand-ins for its samples."""
REFUSE_SECONDS = 60.0
"""How long a file that could not be fetched is not tried again: its samples are asked for one by one."""
BLOCK_BYTES = 1 << 23
STALE_SECONDS = 3600.0


def is_url(folder: str | Path) -> bool:
    """Whether a data set folder is reached through fsspec (s3://, gs://, https://, file://, ...)."""
    return "://" in str(folder)


@dataclass(frozen=True)
class Remote:
    """One file of a store, and what it has to be."""

    url: str
    bytes: int
    sha256: str


class ShardCache:
    """Local copies of remote files.

    Args:
        folder: on a local disk; processes of one machine share it.
        limit_bytes: room for all copies together. A single file that is larger stands alone.
    """

    def __init__(self, folder: str | Path, limit_bytes: int):
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self._refused: dict[str, tuple[float, str]] = {}
        for name in ("files", "locks"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def open(self, remote: Remote) -> int:
        """A descriptor of the local copy, fetched if need be; the caller closes it.

        Raises:
            OSError: cannot be fetched after all tries, is not what the manifest says, or finds no room.
        """
        path = self.folder / "files" / remote.sha256
        with contextlib.suppress(FileNotFoundError):
            return self._opened(path)
        until, reason = self._refused.get(remote.sha256, (0.0, ""))
        if time.monotonic() < until:
            raise OSError(reason)
        with self._lock(remote.sha256[:3]):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                return self._opened(path)
            try:
                opened = self._fetch(remote, path)
            except OSError as error:
                self._refused[remote.sha256] = (time.monotonic() + REFUSE_SECONDS, str(error))
                raise
        self._make_room(path)
        return opened

    def has(self, remote: Remote) -> bool:
        return (self.folder / "files" / remote.sha256).exists()

    @staticmethod
    def _opened(path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # used now
        return descriptor

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Held by one process, or one thread of one, at a time; the kernel lets go of a killed one's."""
        with open(self.folder / "locks" / name, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fetch(self, remote: Remote, path: Path) -> int:
        """A descriptor, opened before anybody else can delete the copy again."""
        for pause in (*PAUSES, None):
            try:
                part = path.with_name(f".{path.name}.part")
                try:
                    found = copy(remote.url, part, remote.bytes)
                    if found != remote.sha256:
                        raise OSError(f"{remote.url} has sha256 {found[:12]}, the manifest says {remote.sha256[:12]}")
                    opened = os.open(part, os.O_RDONLY)
                    os.replace(part, path)
                    return opened
                finally:
                    part.unlink(missing_ok=True)
            except Exception as error:  # stores' libraries have exceptions of their own
                if pause is None or getattr(error, "errno", None) in (28, 30):  # no space, read-only: not the store's fault
                    raise OSError(f"{remote.url} cannot be fetched to {self.folder}: {error}") from error
                log.warning("%s: %s; tried again in %g s", remote.url, error, pause)
                time.sleep(pause)

    def _make_room(self, keep: Path) -> None:
        """Deletes the least recently used copies until the rest fits, never the one just fetched."""
        with self._lock("room"):
            found = []
            for entry in os.scandir(self.folder / "files"):
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat()
                    if entry.name.startswith(".") and time.time() - facts.st_mtime > STALE_SECONDS:
                        os.unlink(entry.path)  # a killed process's part
                    elif not entry.name.startswith("."):
                        found.append((facts.st_mtime_ns, facts.st_size, entry.path))
            total = sum(size for _, size, _ in found)
            for _, size, name in sorted(found):
                if total <= self.limit_bytes:
                    break
                if name != str(keep):
                    os.unlink(name)
                    total -= size


def copy(url: str, target: Path, most_bytes: int) -> str:
    """Copies a remote file, at most `most_bytes` of it and one more, and makes it durable; returns the sha256 of what came."""
    import fsspec

    digest, left = hashlib.sha256(), most_bytes + 1
    file_system, path = fsspec.url_to_fs(url)
    with file_system.open(path, "rb", block_size=BLOCK_BYTES) as source, open(target, "wb") as out:
        while left and (block := source.read(min(left, BLOCK_BYTES))):
            digest.update(block)
            out.write(block)
            left -= len(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def mirror(url: str, cache: ShardCache) -> Path:
    """A local folder with the remote data set's manifest and tokenizer, not its tars; fetched anew at every start.

    Raises:
        UserError: no manifest there, or the URL cannot be read.
    """
    import fsspec

    root = cache.folder / "manifests" / hashlib.sha256(url.encode()).hexdigest()[:16]
    with cache._lock("manifests"):
        (root / "manifest").mkdir(parents=True, exist_ok=True)
        for name in ("manifest/manifest.json", "manifest/shards.parquet", "tokenizer.json"):
            try:
                file_system, path = fsspec.url_to_fs(f"{url.rstrip('/')}/{name}")
                data = file_system.cat_file(path)
            except (ImportError, ValueError) as error:  # a protocol nobody knows, or whose library is not installed
                raise UserError(f"data.train = {url}: {error}") from error
            except Exception as error:
                if name != "tokenizer.json":
                    raise UserError(
                        f"{url}/{name} cannot be read ({error!r}): expected a verified data set folder; verify it where it was "
                        "built and copy the whole folder"
                    ) from error
                (root / name).unlink(missing_ok=True)
                continue
            if not (root / name).exists() or (root / name).read_bytes() != data:
                temporary = root / f".{Path(name).name}"
                temporary.write_bytes(data)
                os.replace(temporary, root / name)
    return root


class Prefetcher:
    """Fetches files ahead of their use, in threads of this process; what fails here is said when it is needed."""

    def __init__(self, cache: ShardCache, threads: int = 4):
        self._cache, self._pool = cache, ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        self._busy: set[str] = set()
        self._guard = threading.Lock()

    def want(self, files: Sequence[Remote]) -> None:
        """Sees to it that these are there soon, in this order. Returns at once."""
        for remote in files:
            with self._guard:
                if remote.sha256 in self._busy or self._cache.has(remote):
                    continue
                self._busy.add(remote.sha256)
            self._pool.submit(self._one, remote)

    def _one(self, remote: Remote) -> None:
        try:
            os.close(self._cache.open(remote))
        except OSError as error:
            log.warning("%s", error)
        finally:
            with self._guard:
                self._busy.discard(remote.sha256)

    def close(self) -> None:
        """Forgets what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
