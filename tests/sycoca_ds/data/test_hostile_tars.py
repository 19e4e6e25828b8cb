"""From a stranger's tar to a batch: what `webdataset` would run, follow or unpack is neither; what is sound beside it is fed."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import torch

from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.samples import MAX_MEMBER_BYTES
from data_pipeline.shards.verify import verify
from sycoca_ds.data.loader import TrainSet
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation
from tests.worlds.data.data_sets import write_data_set


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def rewritten(tar: Path, extra: dict[str, list[tuple[tarfile.TarInfo, bytes]]]) -> None:
    """The tar with more members behind those of the named keys, where webdataset would take them for parts of these samples."""
    with tarfile.open(tar) as old:
        members = [(info, old.extractfile(info).read()) for info in old]
    with tarfile.open(tar, "w") as new:
        for number, (info, data) in enumerate(members):
            new.addfile(info, io.BytesIO(data))
            key = info.name.split(".")[0]
            if number + 1 == len(members) or members[number + 1][0].name.split(".")[0] != key:
                for more, content in extra.get(key, []):
                    new.addfile(more, io.BytesIO(content))


def member(name: str, data: bytes, size: int | None = None) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    return info, data


def feed(folder: Path) -> list:
    sources = Sources.load([folder])
    plan = Plan(sources.kept, global_batch_size=4, lanes=4, window=8, seed=1)
    dataset = TrainSet(sources, plan, Tokenizer(folder / "tokenizer.json"), augmentation=Augmentation(24), context_length=12)
    return [dataset.__getitems__([(0, sample)]) for sample in range(plan.samples)]


def test_pickles_beside_a_sample_are_never_opened(tmp_path: Path) -> None:
    folder, sprung = write_data_set(tmp_path / "data", [6, 6], seed=1), tmp_path / "sprung"
    before = feed(folder)
    trap = pickle.dumps(Trap(sprung))
    whole = io.BytesIO()
    torch.save(Trap(sprung), whole)
    more = [
        (f"000000002.{kind}", data) for kind, data in (("pyd", trap), ("pickle", trap), ("pkl", trap), ("pth", whole.getvalue()))
    ]
    rewritten(folder / "shards/00000.tar", {"000000002": [member(name, data) for name, data in more]})
    verify(folder, processes=1, accept_changed=True)
    after = feed(folder)
    assert len(after) == len(before) == 12 and not sprung.exists()
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.pixels, new.pixels) and torch.equal(old.text_BL, new.text_BL) and new.stand_ins == 0
    pickle.loads(trap)
    assert sprung.exists(), "the trap itself must work, or this test could not fail"


def test_doubled_keys_and_members_too_large_are_left_out_and_counted(tmp_path: Path) -> None:
    """The first sample of a key is fed, a second is not; a picture of 64 MB and more is not read at all."""
    folder = write_data_set(tmp_path / "data", [6, 6], seed=1)
    before = feed(folder)
    facts = json.dumps({"uid": "f" * 16, "url": "http://example.org/x.jpg", "width": 32, "height": 32}).encode()
    again = [member(f"000000003.{kind}", data) for kind, data in (("jpg", b"x"), ("txt", b"another"), ("json", facts))]
    large = [
        member(f"000000099.{kind}", data)
        for kind, data in (("jpg", bytes(MAX_MEMBER_BYTES + 1)), ("txt", b"large"), ("json", facts))
    ]
    rewritten(folder / "shards/00000.tar", {"000000003": again, "000000005": large})
    summary = verify(folder, processes=1, accept_changed=True)
    assert summary["rejected"] == {"duplicate key": 1, "member too large": 1}
    after = feed(folder)
    assert len(after) == 12 and all(torch.equal(a.pixels, b.pixels) for a, b in zip(before, after, strict=True))


def test_a_header_of_four_gigabytes_names_the_shard_and_leaves_it_out(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", [6, 6], seed=1)
    tar = folder / "shards/00000.tar"
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as old:
        place = old.getmembers()[6].offset
    info = tarfile.TarInfo("000000002.jpg")
    info.size = 4 << 30
    data[place : place + 512] = info.tobuf()
    tar.write_bytes(data)
    summary = verify(folder, processes=1, accept_changed=True)
    assert [entry["path"] for entry in summary["damaged"]] == ["shards/00000.tar"] and "cut off" in summary["damaged"][0]["reason"]
    assert [shard.path.name for shard in Manifest.load(folder).shards] == ["00001.tar"] and len(feed(folder)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"], "nothing was written beside the folder"
