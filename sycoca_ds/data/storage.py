"""Shards that lie behind a URL: copied whole to a local disk, checked, shared by all processes of a machine, and bounded.

A folder `CACHE/files` holds copies under the sha256 of their contents, so that no copy can be stale. Whoever needs one that is not
there fetches it under a lock, while the others wait; the least recently used ones make room. A file that was opened stays readable
when its name goes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import sync
from data_pipeline.lock import machine_lock

log = logging.getLogger(__name__)

PAUSES = (1.0, 4.0, 15.0, 60.0)
"""Seconds before each further try to fetch a file; a store's hiccup must not become stand-ins for its samples."""
REFUSE_SECONDS = 600.0
"""How long a file that could not be fetched is not tried again, by any process of the run: its samples are asked for one by one."""
MOST_BYTES = 1 << 30
"""Of a file whose size is not known beforehand."""
BLOCK_BYTES = 1 << 23
STALE_SECONDS = 3600.0
URL = re.compile(r"(?:[a-z][\w+.-]*::)*[a-z][\w+.-]*://", re.IGNORECASE)
"""How one begins: a folder may have `::` or `://` in its name."""
NOT_THE_STORES = (ImportError, TypeError, AttributeError, NameError, AssertionError, MemoryError)
"""Errors that no second try mends: stores' libraries raise exceptions of their own, so everything else is theirs."""


def is_url(folder: str | Path) -> bool:
    """Whether a data set folder is reached through fsspec (s3://, gs://, https://, file://, ...)."""
    return URL.match(str(folder)) is not None


@dataclass(frozen=True)
class Remote:
    """One file of a store, and what it has to be."""

    url: str
    bytes: int | None
    """None: the manifest does not say."""
    sha256: str


class ShardCache:
    """Local copies of remote files.

    Args:
        folder: on a local disk; processes of one machine share it.
        limit_bytes: room for all copies together. A single file that is larger stands alone; what is being fetched, and what is
            deleted while a process has it open, comes on top.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, limit_bytes: int):
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self._began = time.time()
        try:
            for name in ("files", "locks", "refused"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache = {folder}: {error}; expected a folder on a local disk that can be written to") from None
        with self._lock("room"):  # says now if there are no locks
            pass

    def open(self, remote: Remote) -> int:
        """A descriptor of the local copy, fetched if need be; the caller closes it.

        Raises:
            OSError: cannot be fetched after all tries, is not what the manifest says, or finds no room.
        """
        path, refused = self.folder / "files" / remote.sha256, self.folder / "refused" / remote.sha256
        with contextlib.suppress(FileNotFoundError):
            return self._opened(path)
        with self._lock(remote.sha256[:3]):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                return self._opened(path)
            with contextlib.suppress(FileNotFoundError):  # or has failed, since this run began
                if refused.stat().st_mtime > max(self._began, time.time() - REFUSE_SECONDS):
                    raise OSError(refused.read_text())
            if remote.bytes is not None:
                self._make_room(self.limit_bytes - remote.bytes)
            try:
                opened = self._fetch(remote, path)
            except OSError as error:
                refused.write_text(str(error))
                raise
            refused.unlink(missing_ok=True)
        self._make_room(self.limit_bytes, keep=path)
        return opened

    def has(self, remote: Remote) -> bool:
        """Whether there is a copy, which then counts as used now: who asks is going to open it."""
        try:
            os.utime(self.folder / "files" / remote.sha256)
        except FileNotFoundError:
            return False
        return True

    def forget(self, remote: Remote) -> None:
        """Deletes a copy that turned out to be bad; the next one who needs it fetches it anew."""
        (self.folder / "files" / remote.sha256).unlink(missing_ok=True)

    @property
    def present_bytes(self) -> int:
        return sum(size for _, size, _ in self._copies())

    @staticmethod
    def _opened(path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return descriptor

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Held by one process of this machine, or one thread of one, at a time; the kernel lets go of a killed one's."""
        with machine_lock(self.folder / "locks" / name):
            yield

    def _fetch(self, remote: Remote, path: Path) -> int:
        """A descriptor, opened before anybody else can delete the copy again."""
        for pause in (*PAUSES, None):
            try:
                part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
                try:
                    found = copy(remote.url, part, MOST_BYTES if remote.bytes is None else remote.bytes)
                    if found != remote.sha256:
                        raise OSError(f"{remote.url} has sha256 {found[:12]}, the manifest says {remote.sha256[:12]}")
                    opened = os.open(part, os.O_RDONLY)
                    os.replace(part, path)
                    return opened
                finally:
                    part.unlink(missing_ok=True)
            except NOT_THE_STORES:
                raise
            except Exception as error:
                full = getattr(error, "errno", None) == errno.ENOSPC
                if pause is None or getattr(error, "errno", None) == errno.EROFS:
                    raise OSError(f"{remote.url} cannot be fetched to {self.folder}: {error}") from error
                if full:  # less room than it was told
                    self._make_room(self.present_bytes - 2 * (remote.bytes or MOST_BYTES))
                log.warning("%s: %s; tried again in %g s", remote.url, error, pause)
                time.sleep(pause)

    def _copies(self) -> list[tuple[int, int, str]]:
        """(last use, bytes, path) of every copy; deletes what killed processes left half-fetched."""
        found = []
        for entry in os.scandir(self.folder / "files"):
            with contextlib.suppress(OSError):
                facts = entry.stat()
                if not entry.name.startswith("."):
                    found.append((facts.st_mtime_ns, facts.st_size, entry.path))
                elif time.time() - facts.st_mtime > STALE_SECONDS:
                    os.unlink(entry.path)
        return found

    def _make_room(self, limit: int, keep: Path | None = None) -> None:
        """Deletes the least recently used copies until the rest fits into `limit` bytes, never `keep`."""
        with self._lock("room"):
            copies = self._copies()
            total = sum(size for _, size, _ in copies)
            for _, size, name in sorted(copies):
                if total <= limit:
                    break
                if name != str(keep):
                    with contextlib.suppress(OSError):
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
    sync(target)
    return digest.hexdigest()


def mirror(url: str, cache: ShardCache) -> Path:
    """A local folder with the remote data set's manifest and tokenizer, not its tars; fetched anew at every start.

    Raises:
        UserError: no manifest there, or the URL cannot be read.
    """
    root = cache.folder / "manifests" / hashlib.sha256(url.encode()).hexdigest()[:16]
    with cache._lock("manifests"):
        (root / "manifest").mkdir(parents=True, exist_ok=True)
        for name in ("manifest/manifest.json", "manifest/shards.parquet", "tokenizer.json"):
            data = _read_small(url, name)
            if data is None:
                (root / name).unlink(missing_ok=True)
            elif not (root / name).exists() or (root / name).read_bytes() != data:
                temporary = root / f".{Path(name).name}.{os.getpid()}"
                temporary.write_bytes(data)
                os.replace(temporary, root / name)
    return root


def _read_small(url: str, name: str) -> bytes | None:
    """One file of a remote data set folder; None for a tokenizer.json that is not there. Raises `UserError`."""
    import fsspec

    for pause in (*PAUSES, None):
        try:
            file_system, path = fsspec.url_to_fs(f"{url.rstrip('/')}/{name}")
            with file_system.open(path, "rb") as file:
                return file.read()
        except (ImportError, ValueError) as error:  # a protocol nobody knows, or whose library is not installed
            raise UserError(f"data.train = {url}: {error}") from error
        except NOT_THE_STORES:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and name == "tokenizer.json":
                return None
            if isinstance(error, FileNotFoundError) or pause is None:
                raise UserError(
                    f"{url}/{name} cannot be read ({error!r}): expected a verified data set folder; verify it where it was built "
                    "and copy the whole folder"
                ) from error
            log.warning("%s/%s: %s; tried again in %g s", url, name, error, pause)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


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
