"""Shards behind a URL: the same samples, each file fetched once, checked, bounded; stores that fail, lie and vanish."""

from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.errors import UserError
from sycoca_ds.config import DataConfig
from sycoca_ds.data import storage
from sycoca_ds.data.loader import PlannedBatches, ShardReader, TrainSet, train_loader
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.storage import Prefetcher, Remote, ShardCache, is_url
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation
from sycoca_ds.engine.preparation import check_cache
from sycoca_ds.presets import PRESETS
from tests.worlds.data.shared_cache import open_all


class Store(MemoryFileSystem):
    """A store in memory that counts what is opened, and fails as often as it is told."""

    protocol = "store"
    store: dict = {}
    pseudo_dirs = [""]
    opened: collections.Counter = collections.Counter()
    failing: dict[str, int] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("store://", "memory://"))

    def _open(self, path, mode="rb", **more):
        if mode == "rb":
            self.opened[Path(path).name] += 1
            if self.failing.get(Path(path).name, 0) > 0:
                self.failing[Path(path).name] -= 1
                raise ConnectionError("the store is away")
        return super()._open(path, mode, **more)


fsspec.register_implementation("store", Store, clobber=True)


@pytest.fixture
def store(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The data set behind store://bucket/train; tries follow each other at once."""
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    Store.store.clear()
    file_system = Store()
    for path in data_set.rglob("*"):
        if path.is_file():
            file_system.pipe_file(f"/bucket/train/{path.relative_to(data_set).as_posix()}", path.read_bytes())
    Store.opened.clear()
    Store.failing.clear()
    return file_system


URL = "store://bucket/train"
TARS = ["00000.tar", "00001.tar", "00002.tar", "00003.tar", "00004.tar"]


def fed(sources: Sources, workers: int) -> list[tuple]:
    plan = Plan(sources.kept, global_batch_size=16, lanes=4, window=8, seed=3)
    tokenizer = Tokenizer(sources.manifests[0].root / "tokenizer.json")
    dataset = TrainSet(sources, plan, tokenizer, augmentation=Augmentation(24), context_length=12, keep_open=2)
    loaded = train_loader(dataset, PlannedBatches(plan, 0, 9, 1, 0, 1), workers, pin=False)
    return [(batch.pixels.numpy().tobytes(), batch.text_BL.tolist(), batch.key_B.tolist(), batch.stand_ins) for batch in loaded]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_behind_a_url_give_the_same_batches(store: Store, data_set: Path, tmp_path: Path, workers: int) -> None:
    local, remote = Sources.load([data_set]), Sources.load([URL], ShardCache(tmp_path, 1 << 30))
    assert remote.digest == local.digest and [remote.name(n) for n in range(5)] == [f"{URL}/shards/{tar}" for tar in TARS]
    assert not store.opened["00000.tar"], "tars come when they are read"
    assert fed(remote, workers) == fed(local, 0)
    if workers == 0:  # forked workers count for themselves
        assert {tar: store.opened[tar] for tar in TARS} == dict.fromkeys(TARS, 1)
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert names == {shard.sha256 for shard in local.manifests[0].shards} | {s.index_sha256 for s in local.manifests[0].shards}


def test_the_cache_stays_within_its_room(store: Store, data_set: Path, tmp_path: Path) -> None:
    shards = list(Sources.load([data_set]).manifests[0].shards)
    room = 2 * max(shard.bytes for shard in shards)
    cache = ShardCache(tmp_path, room)
    remotes = [Remote(f"{URL}/shards/{tar}", s.bytes, s.sha256) for tar, s in zip(TARS, shards, strict=True)]
    for number in np.random.default_rng(0).integers(5, size=60):
        descriptor = cache.open(remotes[number])
        found = os.pread(descriptor, 1 << 30, 0)
        os.close(descriptor)
        assert hashlib.sha256(found).hexdigest() == shards[number].sha256
        assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) <= room
    assert store.opened.total() > 10, "it did not all fit"
    # the least recently used one goes: open 0, 1, touch 0, then 2 takes the place of 1
    sizes = {number: shards[number].bytes for number in (1, 2, 3)}
    small = ShardCache(tmp_path / "small", sum(sorted(sizes.values())[-2:]))
    for number in (1, 2, 1, 3):
        os.close(small.open(remotes[number]))
        time.sleep(0.01)
    assert [number for number in sizes if small.has(remotes[number])] == [1, 3]


def test_an_opened_shard_stays_readable_when_its_copy_goes(store: Store, data_set: Path, tmp_path: Path) -> None:
    shard = Sources.load([data_set]).manifests[0].shards[0]
    cache = ShardCache(tmp_path, 1)  # not even one fits: each stands alone
    first = cache.open(Remote(f"{URL}/shards/00000.tar", shard.bytes, shard.sha256))
    other = Sources.load([data_set]).manifests[0].shards[1]
    os.close(cache.open(Remote(f"{URL}/shards/00001.tar", other.bytes, other.sha256)))
    assert [path.name for path in (tmp_path / "files").iterdir()] == [other.sha256]
    assert os.pread(first, 1 << 30, 0) == shard.path.read_bytes()
    os.close(first)


def test_a_store_that_fails_is_asked_again(store: Store, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Sources.load([data_set]).manifests[0].shards[0]
    remote, cache = Remote(f"{URL}/shards/00000.tar", shard.bytes, shard.sha256), ShardCache(tmp_path, 1 << 30)
    Store.failing["00000.tar"] = 3  # as often as it is asked
    with pytest.raises(OSError, match="store://bucket/train/shards/00000.tar cannot be fetched to .*: the store is away"):
        cache.open(remote)
    assert store.opened["00000.tar"] == 3
    with pytest.raises(OSError, match="the store is away"):
        cache.open(remote)
    assert store.opened["00000.tar"] == 3, "not for each of its samples again"
    # nor in other processes of the run; but the next run asks again
    with pytest.raises(OSError, match="the store is away"):
        copy.copy(cache).open(remote)
    assert store.opened["00000.tar"] == 3
    time.sleep(0.02)
    cache = ShardCache(tmp_path, 1 << 30)
    Store.failing["00000.tar"] = 2
    os.close(cache.open(remote))
    assert store.opened["00000.tar"] == 6 and [path.name for path in (tmp_path / "files").iterdir()] == [shard.sha256]


def test_what_no_second_try_mends_is_raised_at_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is not installed, or a mistake of ours, must not pass for a store that is away."""
    remote, tries = Remote(f"{URL}/shards/00000.tar", 1, "0" * 64), []

    def broken(*arguments: object) -> str:
        tries.append(1)
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(storage, "copy", broken)
    with pytest.raises(ImportError, match="Install s3fs"):
        ShardCache(tmp_path, 1 << 30).open(remote)
    assert len(tries) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "endless"])
def test_what_the_manifest_does_not_say_is_never_used(store: Store, data_set: Path, tmp_path: Path, damage: str) -> None:
    shard = Sources.load([data_set]).manifests[0].shards[0]
    data = bytearray(shard.path.read_bytes())
    data[700] ^= 1
    stored = {"cut": data[:-512], "changed": data, "endless": shard.path.read_bytes() + bytes(1 << 24)}[damage]
    store.pipe_file("/bucket/train/shards/00000.tar", bytes(stored))
    cache = ShardCache(tmp_path, 1 << 30)
    with pytest.raises(OSError, match="00000.tar has sha256 .*, the manifest says"):
        cache.open(Remote(f"{URL}/shards/00000.tar", shard.bytes, shard.sha256))
    assert list((tmp_path / "files").iterdir()) == []


def test_a_shard_that_is_gone_is_reported_as_lost(store: Store, tmp_path: Path) -> None:
    sources = Sources.load([URL], ShardCache(tmp_path, 1 << 30))
    store.rm("/bucket/train/shards/00000.tar")
    plan = Plan(sources.kept, global_batch_size=4, lanes=2, window=8, seed=3)
    tokenizer = Tokenizer(sources.manifests[0].root / "tokenizer.json")
    dataset = TrainSet(sources, plan, tokenizer, augmentation=Augmentation(24), context_length=12)
    batch = dataset.__getitems__([(0, 3), (0, 40)])
    assert batch.stand_ins == 2 and "store://bucket/train/shards/00000.tar cannot be fetched" in batch.lost
    assert "look at the store, the credentials and data.cache" in batch.lost
    assert store.opened["00000.tar"] == 3 and not store.opened["00001.tar"], "asked for one shard, as often as said"


def test_a_copy_that_went_bad_is_fetched_anew(store: Store, data_set: Path, tmp_path: Path) -> None:
    sources = Sources.load([URL], ShardCache(tmp_path, 1 << 30))
    local = Sources.load([data_set])
    for remote in sources.remote(0):
        (tmp_path / "files" / remote.sha256).write_bytes(b"cut")
    reader = ShardReader(sources)
    with pytest.raises(OSError, match="its copy was damaged"):
        reader.read(0, 3)
    with pytest.raises(OSError, match="ends inside a member"):
        reader.read(0, 3)
    assert ShardReader(sources).read(0, 3) == ShardReader(local).read(0, 3)


def test_processes_share_a_cache_that_is_too_small_for_them(data_set: Path, tmp_path: Path) -> None:
    """Four processes open and delete under each other's hands; each reads what the manifest says, or would say so."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=open_all, args=(data_set.as_uri(), tmp_path, seed, answers), daemon=True) for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=120) for _ in workers] == ["done"] * 4
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0
    (tmp_path / "files" / ".left.part").write_bytes(b"of a process that was killed long ago")
    os.utime(tmp_path / "files" / ".left.part", (1, 1))
    sources = Sources.load([data_set.as_uri()], ShardCache(tmp_path, 1))
    for shard in range(5):
        os.close(sources.open(shard))
    assert len(list((tmp_path / "files").iterdir())) == 1, "the last one opened"


def test_prefetching_fetches_what_is_wanted_once(store: Store, data_set: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1 << 30)
    sources = Sources.load([URL], cache)
    prefetcher, wanted = Prefetcher(cache, threads=2), [file for shard in range(5) for file in sources.remote(shard)]
    Store.failing["00003.tar"] = 100  # said when it is needed, not here
    for _ in range(3):
        prefetcher.want(wanted)
    deadline = time.monotonic() + 30
    while prefetcher._busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [file.url for file in wanted if not cache.has(file)] == [f"{URL}/shards/00003.tar"]
    assert {tar: store.opened[tar] for tar in TARS} == {**dict.fromkeys(TARS, 1), "00003.tar": 3}
    prefetcher.close()


def test_what_cannot_be_is_refused_before_the_start(
    store: Store, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, 1 << 30)
    with pytest.raises(UserError, match="shards behind a URL need data.cache"):
        Sources.load([URL])
    with pytest.raises(UserError, match="data.train = nosuch://bucket: Protocol not known: nosuch"):
        Sources.load(["nosuch://bucket"], cache)
    with pytest.raises(UserError, match="store://bucket/none/manifest/manifest.json cannot be read .*expected a verified data set"):
        Sources.load(["store://bucket/none"], cache)
    config = PRESETS["tiny"]
    sources = Sources.of(DataConfig(train=(URL,), cache=str(tmp_path), cache_gib=1e-4))
    plan = Plan(sources.kept, global_batch_size=16, lanes=4, window=8, seed=3)
    small, large = (
        dataclasses.replace(config, data=DataConfig(train=(URL,), cache=str(tmp_path), cache_gib=gib)) for gib in (1e-5, 1.0)
    )
    check_cache(large, plan, sources, 4)
    few = os.statvfs_result((4096, 4096, 10, 0, 0, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    with pytest.raises(UserError, match="data.cache-gib = 1: the disk of .* has 0 GiB for it"):
        check_cache(large, plan, sources, 4)
    with pytest.raises(UserError, match="data.cache = /proc/x: .*expected a folder on a local disk"):
        ShardCache("/proc/x", 1)
    with pytest.raises(UserError, match="data.cache-gib = 1e-05: expected at least .* lower data.lanes or data.window"):
        check_cache(small, plan, sources, 4)


def test_a_full_disk_makes_room_and_goes_on(store: Store, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is higher than what the disk holds: the least recently used copies go, whoever set it."""
    shards, plain = list(Sources.load([data_set]).manifests[0].shards), storage.copy
    cache = ShardCache(tmp_path, 1 << 30)
    disk = 3 * max(shard.bytes for shard in shards)

    def on_a_small_disk(url: str, target: Path, most_bytes: int) -> str:
        if cache.present_bytes + most_bytes > disk:
            raise OSError(28, "No space left on device")
        return plain(url, target, most_bytes)

    monkeypatch.setattr(storage, "copy", on_a_small_disk)
    for _ in range(3):
        for tar, shard in zip(TARS, shards, strict=True):
            os.close(cache.open(Remote(f"{URL}/shards/{tar}", shard.bytes, shard.sha256)))
    assert 0 < cache.present_bytes <= disk


def test_the_tokenizer_is_missing_only_if_the_store_says_so(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1 << 30)
    root = storage.mirror(URL, cache)
    before = (root / "tokenizer.json").read_bytes()
    Store.failing["tokenizer.json"] = 2
    assert storage.mirror(URL, cache) == root and (root / "tokenizer.json").read_bytes() == before
    Store.failing["tokenizer.json"] = 3
    with pytest.raises(UserError, match="tokenizer.json cannot be read .*the store is away"):
        storage.mirror(URL, cache)
    assert (root / "tokenizer.json").read_bytes() == before
    Store.failing.clear()
    store.rm("/bucket/train/tokenizer.json")
    assert not (storage.mirror(URL, cache) / "tokenizer.json").exists()


def test_what_is_a_url_and_what_a_folder():
    urls = ("s3://bucket/a", "file:///a/b", "simplecache::s3://bucket/a", "HTTPS://a.example/b", "gs://a/b [v1]::c")
    folders = ("/data/cc12m", "a::b", "data/s3:/x", "/data/a://b", "./s3://x", "x:y", "cc12m [v1]", "a::b/c://d e")
    assert all(map(is_url, urls)) and not any(map(is_url, folders)) and not is_url(Path("a::b"))
