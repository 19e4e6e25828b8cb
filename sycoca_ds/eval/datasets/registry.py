"""The sets of the paper: what each is for, where its files lie, how many pictures its page says it has, and that page.

Counts: the sets' pages and papers; captions of Karpathy's splits of MSCOCO: 414,113 + 152,634 = 566,747 to train, 25,010 each to
validate and test, 616,767 in all. ImageNet's relatives: 200 of its classes (-A, -R), all (-V2).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from data_pipeline.files import no_folder
from sycoca_ds.eval.datasets.arrays import Cifar, Mnist, Stl
from sycoca_ds.eval.datasets.captioned import CocoJson, Karpathy
from sycoca_ds.eval.datasets.folders import Caltech, NumberFolders, WnidFolders
from sycoca_ds.eval.datasets.lists import ByFolder, Cub, Dogs, Flowers, Pets
from sycoca_ds.eval.datasets.questioned import TEST, TEST_DEV, VALIDATION, VqaJson
from sycoca_ds.eval.datasets.reading import Absent, Damaged, Layout, Split, present


@dataclass(frozen=True)
class Count:
    """How much there is of a split."""

    pictures: int | None = None
    """None: not known, as of the next two where the set has them."""
    captions: int | None = None
    """None: the set has none, or keeps them back."""
    classes: int | None = None


@dataclass(frozen=True)
class OfficialSet:
    """One set as it is published."""

    name: str
    title: str
    tasks: tuple[str, ...]
    """What it is for: retrieval, captioning, classification, linear_probe, vqa."""
    layout: Layout
    homes: tuple[str, ...]
    """Names its folder may have in the data root; case, hyphens and underscores do not count."""
    counts: dict[str, Count]
    """Official ones, by split."""
    evaluated: str
    """The split that numbers are reported on."""
    page: str
    inner: tuple[str, ...] = ()
    """Folders in it that archives bring with them, one of which may hold the files."""
    primary: str = "top1"
    """Metric of classification that papers report: mean_per_class where CLIP, SLIP and DataComp do."""
    fitted: tuple[str, ...] = ()
    """Splits that a linear probe is fitted on: to train, then to choose C, or only the first where there is no second."""
    submitted: tuple[str, ...] = ()
    """Splits whose captions or answers the set's server takes."""

    @property
    def folder(self) -> str:
        """What its folder of results is called."""
        return re.sub(r"[^\w.-]", "_", self.name)

    def places(self, data_root: Path) -> Iterator[Path]:
        """Folders in which it may lie, the likeliest first."""
        there = sorted(entry.name for entry in os.scandir(data_root) if entry.is_dir())
        for home in self.homes:
            for name in (name for name in there if plain(name) == plain(home)):
                yield from (data_root / name / inner for inner in self.inner if (data_root / name / inner).is_dir())
                yield data_root / name

    def expected(self, split: str) -> str:
        """Where which files should be, and the page they come from."""
        files = ", ".join(self.layout.needs(split))
        return f"expected {self.homes[0]}/ with {files}; from {self.page}"

    def root(self, data_root: Path, split: str) -> Path:
        """The folder that holds the split. Raises `Absent` where no folder has its first file."""
        places = list(self.places(data_root))
        marker = self.layout.needs(split)[0]
        found = next((place for place in places if present(place, marker)), None)
        if found is None:
            where = f"no {marker} in {places[-1]}" if places else f"not in {data_root}"
            raise Absent(f"{self.name}, split {split}: {where}; {self.expected(split)}")
        return found

    def open(self, data_root: Path, split: str) -> tuple[Path, Split]:
        """Its folder, and the split as read.

        Raises:
            Absent: it is not there. Damaged: a part of it is not, or not as its page says.
        """
        root = self.root(data_root, split)
        gone = [need for need in self.layout.needs(split) if not present(root, need)]
        if gone:
            raise Damaged(f"{self.name}, split {split}: {root} lacks {', '.join(gone)}; from {self.page}")
        return root, self.layout.read(root, split)


def plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).lower()


RETRIEVAL, CLASSIFICATION, PROBE = ("retrieval", "captioning"), ("classification",), ("linear_probe",)
ASSOCIATION = ("association",)
COCO_CAPTIONED = ("train2014", "val2014", "train2017", "val2017")
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/ (caption_datasets.zip)"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"

SETS: dict[str, OfficialSet] = {
    entry.name: entry
    for entry in (
        OfficialSet(
            "flickr30k",
            "Flickr30K, Karpathy's splits",
            RETRIEVAL,
            Karpathy("dataset_flickr30k.json", ("flickr30k-images/", "flickr30k_images/", "images/")),
            ("flickr30k", "flickr"),
            {"train": Count(29_000, 145_000), "val": Count(1_014, 5_070), "test": Count(1_000, 5_000)},
            "test",
            f"{KARPATHY}, pictures: https://shannon.cs.illinois.edu/DenotationGraph/",
        ),
        OfficialSet(
            "mscoco",
            "MSCOCO, Karpathy's splits",
            RETRIEVAL,
            Karpathy("dataset_coco.json", ("", "images/")),
            ("coco", "mscoco", "coco2014", "coco_2014"),
            {
                "train": Count(82_783, 414_113),
                "restval": Count(30_504, 152_634),
                "val": Count(5_000, 25_010),
                "test": Count(5_000, 25_010),
            },
            "test",
            f"{KARPATHY}, pictures: https://cocodataset.org/#download (train2014, val2014)",
        ),
        OfficialSet(
            "coco_captions",
            "COCO captions, its own splits",
            RETRIEVAL,
            CocoJson(
                {
                    split: f"annotations/{kind}_{split}.json or {kind}_{split}.json"
                    for kind, splits in (("captions", COCO_CAPTIONED), ("image_info", ("test2014",)))
                    for split in splits
                },
                {split: f"{split}/ or images/{split}/" for split in (*COCO_CAPTIONED, "test2014")},
                COCO_CAPTIONED,
            ),
            ("coco", "mscoco", "coco2014", "coco2017", "coco_captions"),
            {
                "train2014": Count(82_783, 414_113),
                "val2014": Count(40_504, 202_654),
                "train2017": Count(118_287, 591_753),
                "val2017": Count(5_000, 25_014),
                "test2014": Count(40_775),
            },
            "val2017",
            "https://cocodataset.org/#download",
            submitted=("val2014", "test2014"),
        ),
        OfficialSet(
            "nocaps",
            "NoCaps",
            ("captioning",),
            CocoJson(
                {
                    "val": "nocaps_val_4500_captions.json or annotations/nocaps_val_4500_captions.json",
                    "test": "nocaps_test_image_info.json or annotations/nocaps_test_image_info.json",
                },
                {"val": "val/ or images/", "test": "test/ or images/"},
                ("val",),
                grouped="val",
            ),
            ("nocaps",),
            {"val": Count(4_500, 45_000), "test": Count(10_600)},
            "val",
            "https://nocaps.org/download",
            submitted=("test",),
        ),
        OfficialSet(
            "imagenet1k",
            "ImageNet-1K, validation set",
            CLASSIFICATION,
            WnidFolders("val/", published=True),
            ("imagenet1k", "imagenet", "ilsvrc2012", "ilsvrc"),
            {"val": Count(50_000, classes=1_000)},
            "val",
            "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
        ),
        OfficialSet(
            "imagenet_v2",
            "ImageNet-V2, matched frequency",
            CLASSIFICATION,
            NumberFolders(),
            ("imagenetv2", "imagenetv2-matched-frequency", "imagenetv2-matched-frequency-format-val"),
            {"test": Count(10_000, classes=1_000)},
            "test",
            "https://github.com/modestyachts/ImageNetV2",
            ("imagenetv2-matched-frequency-format-val",),
        ),
        OfficialSet(
            "imagenet_a",
            "ImageNet-A",
            CLASSIFICATION,
            WnidFolders(""),
            ("imagenet-a",),
            {"test": Count(7_500, classes=200)},
            "test",
            "https://github.com/hendrycks/natural-adv-examples",
            ("imagenet-a",),
        ),
        OfficialSet(
            "imagenet_r",
            "ImageNet-R",
            CLASSIFICATION,
            WnidFolders(""),
            ("imagenet-r",),
            {"test": Count(30_000, classes=200)},
            "test",
            "https://github.com/hendrycks/imagenet-r",
            ("imagenet-r",),
        ),
        OfficialSet(
            "cifar10",
            "CIFAR-10",
            CLASSIFICATION,
            Cifar(
                {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
                "labels",
                "batches.meta",
                "label_names",
            ),
            ("cifar10", "cifar-10-batches-py", "cifar-10-python"),
            {"train": Count(50_000, classes=10), "test": Count(10_000, classes=10)},
            "test",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            ("cifar-10-batches-py",),
        ),
        OfficialSet(
            "cifar100",
            "CIFAR-100, fine labels",
            CLASSIFICATION,
            Cifar({"train": ("train",), "test": ("test",)}, "fine_labels", "meta", "fine_label_names"),
            ("cifar100", "cifar-100-python"),
            {"train": Count(50_000, classes=100), "test": Count(10_000, classes=100)},
            "test",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            ("cifar-100-python",),
        ),
        OfficialSet(
            "stl10",
            "STL-10",
            CLASSIFICATION,
            Stl(),
            ("stl10", "stl10_binary"),
            {"train": Count(5_000, classes=10), "test": Count(8_000, classes=10)},
            "test",
            "https://cs.stanford.edu/~acoates/stl10/",
            ("stl10_binary",),
        ),
        OfficialSet(
            "caltech101",
            "Caltech-101",
            CLASSIFICATION,
            Caltech(),
            ("caltech101", "101_ObjectCategories"),
            {"all": Count(8_677, classes=101), "background": Count(9_144, classes=102)},
            "all",
            "https://data.caltech.edu/records/mzrjq-6wc02",
            ("101_ObjectCategories", "caltech-101/101_ObjectCategories"),
            "mean_per_class",
        ),
        OfficialSet(
            "dtd",
            "Describable Textures, split 1",
            PROBE,
            ByFolder({split: f"labels/{split}1.txt" for split in ("train", "val", "test")}),
            ("dtd", "dtd-r1.0.1"),
            {split: Count(1_880, classes=47) for split in ("train", "val", "test")},
            "test",
            f"{OXFORD}/dtd/",
            ("dtd",),
            fitted=("train", "val"),
        ),
        OfficialSet(
            "pets",
            "Oxford-IIIT Pet",
            PROBE,
            Pets(),
            ("oxford-iiit-pet", "pets", "oxford_pets"),
            {"trainval": Count(3_680, classes=37), "test": Count(3_669, classes=37)},
            "test",
            f"{OXFORD}/pets/",
            ("oxford-iiit-pet",),
            "mean_per_class",
            ("trainval",),
        ),
        OfficialSet(
            "dogs",
            "Stanford Dogs",
            PROBE,
            Dogs(),
            ("stanford_dogs", "dogs"),
            {"train": Count(12_000, classes=120), "test": Count(8_580, classes=120)},
            "test",
            "http://vision.stanford.edu/aditya86/ImageNetDogs/",
            fitted=("train",),
        ),
        OfficialSet(
            "cub200",
            "CUB-200-2011",
            PROBE,
            Cub(),
            ("CUB_200_2011", "cub200", "cub"),
            {"train": Count(5_994, classes=200), "test": Count(5_794, classes=200)},
            "test",
            "https://www.vision.caltech.edu/datasets/cub_200_2011/",
            ("CUB_200_2011",),
            fitted=("train",),
        ),
        OfficialSet(
            "flowers102",
            "Oxford Flowers 102",
            PROBE,
            Flowers(),
            ("flowers-102", "oxford_flowers_102", "flowers"),
            {split: Count(count, classes=102) for split, count in (("train", 1_020), ("val", 1_020), ("test", 6_149))},
            "test",
            f"{OXFORD}/flowers/102/",
            ("flowers-102",),
            "mean_per_class",
            ("train", "val"),
        ),
        OfficialSet(
            "mnist",
            "MNIST",
            PROBE,
            Mnist(),
            ("mnist",),
            {"train": Count(60_000, classes=10), "test": Count(10_000, classes=10)},
            "test",
            "http://yann.lecun.com/exdb/mnist/",
            ("MNIST/raw", "raw"),
            fitted=("train",),
        ),
        OfficialSet(
            "food101",
            "Food-101",
            PROBE,
            ByFolder({split: f"meta/{split}.txt" for split in ("train", "test")}, "meta/classes.txt", ".jpg"),
            ("food-101",),
            {"train": Count(75_750, classes=101), "test": Count(25_250, classes=101)},
            "test",
            "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
            ("food-101",),
            fitted=("train",),
        ),
        OfficialSet(
            "vqa_v2",
            "VQA v2",
            ("vqa",),
            VqaJson(),
            ("vqa_v2", "vqa"),
            {VALIDATION: Count(40_504), TEST: Count(81_434), TEST_DEV: Count(36_807)},
            VALIDATION,
            "https://visualqa.org/download.html, pictures: https://cocodataset.org/#download",
            submitted=(TEST,),
        ),
    )
}
PAPER = "paper"
SUITES: dict[str, tuple[str, ...]] = {PAPER: tuple(name for name in SETS if name != "coco_captions")}
"""Sets of the paper's Tables 1 to 7."""


def chosen(names: tuple[str, ...], option: str = "--sets") -> list[OfficialSet]:
    """Sets by name. UserError for a name that is none."""
    for name in names:
        if name not in SETS:
            raise UserError(f"{option} {name}: no such set{nearest(name, SETS)} (there are {' '.join(SETS)})")
    return [SETS[name] for name in dict.fromkeys(names)]


def folder_of(path: str) -> Path:
    """UserError where `--data-root` is no folder."""
    if not Path(path).is_dir():
        raise UserError(f"--data-root {path}: {no_folder(path)}; expected one with a folder a set, as docs/evaluation.md has them")
    return Path(path)
