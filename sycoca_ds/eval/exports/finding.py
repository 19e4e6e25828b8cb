"""Which exports lie in a data root, and under which names they are asked for.

    wds:NAME        DATA_ROOT/wds_NAME, wds_NAME_test (DataComp's) or wds/NAME; NAME is CLIP_benchmark's with - for its slash
    parquet:NAME    DATA_ROOT/NAME or parquet/NAME with parquet files in it

An export of a set of the paper stands in for the official files where these are not there.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.eval.datasets.reading import Absent, Damaged, Layout, Unused
from sycoca_ds.eval.datasets.registry import ASSOCIATION, CLASSIFICATION, RETRIEVAL, SETS, Count, OfficialSet, chosen, plain
from sycoca_ds.eval.exports.parquet import Parquets, columns_of, files_of
from sycoca_ds.eval.exports.tars import COUNT, Tars, kind_of
from sycoca_ds.eval.exports.tasklist import JACCARD, known
from sycoca_ds.eval.exports.winogavil import Winogavil, asks

WDS, PARQUET = "wds", "parquet"
PAGES = {
    WDS: "https://huggingface.co/clip-benchmark, or written by CLIP_benchmark's clip_benchmark_export_wds",
    PARQUET: "https://huggingface.co/datasets",
}
LOOKED_AT = 200
"""Entries of a folder among which there has to be a parquet file: others hold pictures by the thousand."""
EVALUATED = ("test", "validation", "val", "valid", "dev")
"""Splits that numbers are reported on, the first that is there."""
OWN_FILES = ("manifest/manifest.json", "canonical/curate.json", "download.json", "pictures.json")
"""Of which a data set folder of this project has one, beside parquet files that hold no pictures."""
STAND_INS = {
    "flickr30k": ("flickr30k", "flickr_1k_test_image_text_retrieval"),
    "mscoco": ("mscoco_captions", "mscoco_2014_5k_test_image_text_retrieval"),
    "imagenet1k": ("imagenet1k", "imagenet-1k"),
    "imagenet_v2": ("imagenetv2",),
    "imagenet_a": ("imagenet-a",),
    "imagenet_r": ("imagenet-r",),
    "cifar10": ("cifar10", "vtab-cifar10"),
    "cifar100": ("cifar100", "vtab-cifar100"),
    "stl10": ("stl10",),
    "dtd": ("vtab-dtd", "dtd"),
    "pets": ("vtab-pets", "oxford-iiit-pet"),
    "flowers102": ("vtab-flowers", "flowers102"),
    "mnist": ("mnist",),
    "food101": ("food101",),
}
"""{set of the paper: exports of the same pictures}. VTAB's Caltech-101 is another test split."""


@dataclass(frozen=True)
class Export:
    """A folder with an export in it."""

    kind: str
    """wds or parquet."""
    name: str
    path: str
    """Below the data root, with /."""
    splits: tuple[str, ...]

    @property
    def evaluated(self) -> str:
        return next((split for split in EVALUATED if split in self.splits), self.splits[0])

    def entry(self, data_root: Path) -> OfficialSet:
        """The set that is asked for as KIND:NAME: what is known of it, and else what its files say."""
        listed = known(self.name) if self.kind == WDS else None
        tasks = self._tasks(data_root / self.path)
        home, _, inner = self.path.partition("/")
        return OfficialSet(
            f"{self.kind}:{self.name}",
            f"{listed.title if listed else self.name}, {'WebDataset' if self.kind == WDS else 'parquet'} {self.path}",
            tasks,
            Tars(listed.group if listed else None) if self.kind == WDS else self._parquet(data_root / self.path),
            (home,),
            {split: Count(*listed.counts) if listed and split == "test" else Count() for split in self.splits},
            self.evaluated,
            PAGES[self.kind],
            (inner,) if inner else (),
            listed.primary if listed else JACCARD if tasks == ASSOCIATION else "top1",
        )

    def _parquet(self, root: Path) -> Layout:
        try:
            return Winogavil() if asks(files_of(root, self.evaluated)[0]) else Parquets()
        except Damaged:
            return Parquets()

    def _tasks(self, root: Path) -> tuple[str, ...]:
        try:
            if self.kind == WDS:
                return RETRIEVAL if kind_of(root) == "retrieval" else CLASSIFICATION
            if self._parquet(root) == Winogavil():
                return ASSOCIATION
            return RETRIEVAL if columns_of(files_of(root, self.evaluated)[0]).caption else CLASSIFICATION
        except (Damaged, Unused):  # which is told when it is read
            return CLASSIFICATION


def exports_in(data_root: Path) -> dict[str, Export]:
    """{KIND:NAME: export}; of two folders with one name the first."""
    found: dict[str, Export] = {}
    for path in _folders(data_root):
        splits = sorted(entry.parent.name for entry in path.glob(f"*/{COUNT}"))
        kind = WDS if splits else PARQUET
        splits = splits or ([] if is_own(path) else _parquet_splits(path))
        if splits:
            below = path.relative_to(data_root).as_posix()
            own = cleaned(below) if kind == WDS else below.removeprefix("parquet/").replace("/", "-")
            found.setdefault(f"{kind}:{own}", Export(kind, own, below, tuple(splits)))
    return found


def is_own(path: Path) -> bool:
    """Whether a folder is a data set folder of this project, which `--data` takes."""
    return any((path / name).is_file() for name in OWN_FILES)


def own_folders(data_root: Path) -> list[str]:
    """Names of those in a data root."""
    return [path.name for path in _below(data_root) if is_own(path)]


def cleaned(name: str) -> str:
    """wds_vtab-cifar100_test, wds/vtab/cifar100, vtab/cifar100 -> vtab-cifar100."""
    return re.sub(r"^wds[_/]|_test$", "", name).replace("/", "-")


def _folders(data_root: Path) -> Iterator[Path]:
    for path in _below(data_root):
        if path.name not in (WDS, PARQUET):
            yield path
            continue
        for inner in _below(path):
            yield inner
            yield from _below(inner) if path.name == WDS and not any(inner.glob(f"*/{COUNT}")) else ()


def _below(path: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(path) if entry.is_dir() and not entry.name.startswith("."))


def _entries(path: Path, most: int | None = None) -> list[os.DirEntry[str]]:
    """Those of a folder, at most so many; none where it may not be read, as lost+found."""
    try:
        with os.scandir(path) as entries:
            return list(islice(entries, most))
    except OSError:
        return []


def _parquet_splits(root: Path) -> list[str]:
    splits = set()
    for path in _parquet_files(root, 2):
        named = re.match(r"(\w+?)(-\d{5}-of-\d{5})?\.parquet$", path.name)
        folder = path.parent.name
        if named and not named[1].isdecimal():
            splits.add(named[1])
        elif path.parent != root and folder != "data":
            splits.add(folder)
    return sorted(splits)


def _parquet_files(root: Path, deeper: int) -> Iterator[Path]:
    folders = []
    for entry in _entries(root, LOOKED_AT):
        if entry.is_dir():
            folders.append(Path(entry.path))
        elif entry.name.endswith(".parquet"):
            yield Path(entry.path)
    for folder in folders if deeper else ():
        yield from _parquet_files(folder, deeper - 1)


def not_here(kind: str, name: str) -> OfficialSet:
    """The set of an export that is in no data root: it tells where its files belong."""
    layout = Tars() if kind == WDS else Parquets()
    homes = (f"wds_{name}", f"wds_{name}_test", "wds") if kind == WDS else (name, "parquet")
    listed = known(name) if kind == WDS else None
    tasks = RETRIEVAL if name in (*STAND_INS["flickr30k"], *STAND_INS["mscoco"]) else CLASSIFICATION
    return OfficialSet(
        f"{kind}:{name}", listed.title if listed else name, tasks, layout, homes, {"test": Count()}, "test", PAGES[kind]
    )


def sets_of(names: Sequence[str], data_root: Path, exports: dict[str, Export] | None = None) -> list[OfficialSet]:
    """Sets by name, those of the registry and exports. Where the official files of a set are not there, its export stands in.

    exports: what lies in the data root, where that is known already.

    Raises:
        UserError: no such set.
    """
    exports = exports_in(data_root) if exports is None else exports
    found = []
    for name in dict.fromkeys(names):
        kind, own = asked_as(name)
        if not kind:
            found += [standing_in(entry, data_root, exports) for entry in chosen((name,))]
            continue
        there = next((export for export in exports.values() if export.kind == kind and plain(export.name) == plain(own)), None)
        if there is None and kind == PARQUET and is_own(data_root / own):
            raise UserError(
                f"{name}: {data_root / own} is a data set folder of this project: evaluate it with --data {data_root / own}"
            )
        found.append(there.entry(data_root) if there else not_here(kind, own))
    return found


def asked_as(name: str) -> tuple[str, str]:
    """(wds or parquet, the export's name); of other sets ("", the name)."""
    kind, colon, own = name.partition(":")
    if not colon or kind not in (WDS, PARQUET):
        return "", name
    return kind, cleaned(own) if kind == WDS else own.replace("/", "-")


def called(name: str, entries: Iterable[OfficialSet]) -> OfficialSet | None:
    """The set that a name is for, as `sets_of` understands names."""
    kind, own = asked_as(name)
    if not kind:
        return next((entry for entry in entries if entry.name == name), None)
    same = (entry for entry in entries if asked_as(entry.name)[0] == kind)
    return next((entry for entry in same if plain(asked_as(entry.name)[1]) == plain(own)), None)


def all_sets(data_root: Path) -> list[OfficialSet]:
    """The paper's sets, then the exports that stand in for none of them."""
    exports = exports_in(data_root)
    own = [standing_in(entry, data_root, exports) for entry in SETS.values()]
    taken = {entry.homes + entry.inner for entry in own}
    rest = [export.entry(data_root) for export in exports.values()]
    return own + [entry for entry in rest if entry.homes + entry.inner not in taken]


def standing_in(entry: OfficialSet, data_root: Path, exports: dict[str, Export]) -> OfficialSet:
    """The set itself, or, where its files are not there and an export of it is, the set as that has it."""
    try:
        entry.root(data_root, entry.evaluated)
        return entry
    except Absent:
        pass
    wanted = {plain(name): place for place, name in enumerate((*STAND_INS.get(entry.name, ()), *entry.homes))}
    there = [export for export in exports.values() if entry.name in STAND_INS and plain(export.name) in wanted]
    if not there:
        return entry
    export = min(there, key=lambda export: (wanted[plain(export.name)], export.kind != WDS))
    as_export = export.entry(data_root)
    evaluated = next((split for split in (entry.evaluated, "validation") if split in export.splits), export.evaluated)
    counts = {split: entry.counts[split] if split in entry.counts else Count() for split in export.splits}
    counts[evaluated] = entry.counts[entry.evaluated]
    fitted = tuple(split for split in ("train", "val", "validation") if split in export.splits and split != evaluated)
    return dataclasses.replace(
        entry,
        title=f"{entry.title}, from {export.path}",
        layout=as_export.layout,
        homes=as_export.homes,
        inner=as_export.inner,
        counts=counts,
        evaluated=evaluated,
        fitted=fitted[:2] or entry.fitted if entry.fitted else (),
        submitted=(),
    )
