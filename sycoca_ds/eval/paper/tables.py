"""What the paper (arXiv 2401.02137) prints of evaluations, table by table, and what each cell is measured by here.

Numbers of Tables 1 and 2 were read in the paper's HTML text. There the bodies of Tables 3, 4, 9 and 10 are pictures, which nobody
has read: what they say is not known here and stands as a gap. Table 5 is `ablations.tables`, which trains its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sycoca_ds.ablations.tables import PAPER_COLUMNS, ROWS

SOURCE = "arXiv 2401.02137"
LOST = "its body is a picture in the paper's HTML text, from which the numbers here were read"
PRIMARY = ""
"""In place of a metric: the one that papers report of the set."""
VQA = "vqa"
"""Folder of an evaluation with --questions; no set of the data root."""
FINE_TUNED = "caption"
"""Folder of an evaluation of a checkpoint that was fine-tuned for captions."""
MODELS = {"clip": "ITC", "coca": "CoCa", "sycoca": "SyCoCa"}
"""{family: what the paper calls it}."""


@dataclass(frozen=True)
class Cell:
    """One number of the paper, and what is measured beside it."""

    label: str
    metric: str
    """Of the part's task."""
    scale: float = 1.0
    """The paper prints the metric times this."""
    kept_back: str = ""
    """Why it cannot be measured anywhere but on the set's server; empty: it can."""


@dataclass(frozen=True)
class Part:
    """The columns of a table that are of one set."""

    name: str
    """Of the set, as in `datasets.registry`, or `VQA`."""
    title: str
    task: str
    cells: tuple[Cell, ...]
    remark: str = ""
    """What makes ours another number than the paper's."""
    beside: str = ""
    """Folder in OUT whose numbers go first, if it has them: of a checkpoint that was fine-tuned for this."""


@dataclass(frozen=True)
class PaperTable:
    """One table. Numbers of a model stand in the order of its parts' cells."""

    number: str
    title: str
    trained: str
    """What the paper's models were trained on."""
    parts: tuple[Part, ...]
    numbers: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """{model: what the paper prints}; empty where the body is lost."""
    averages: dict[str, float] = field(default_factory=dict)
    """{model: its plain mean, as printed}."""
    remark: str = ""
    averaged: bool = False
    """Whether the paper speaks of a mean of all columns."""
    unit: str = "Percent."

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.numbers)


RECALLS = tuple(
    Cell(f"{words}, R@{k}", f"{way}_r{k}")
    for way, words in (("i2t", "image to text"), ("t2i", "text to image"))
    for k in (1, 5, 10)
)
MEANS = (Cell("image to text, mean of R@1, 5, 10 (mTR)", "mTR"), Cell("text to image, mean of R@1, 5, 10 (mIR)", "mIR"))
CAPTIONS = tuple(
    Cell(label, metric, 100.0)
    for label, metric in (("BLEU@4", "bleu4"), ("METEOR", "meteor"), ("CIDEr", "cider"), ("SPICE", "spice"))
)
ACCURACY = (Cell("accuracy", PRIMARY),)
TOP1 = (Cell("top-1", "top1"),)
CC12M = "CC12M, 20 epochs, global batch 2,048, 224 px, a model of CoCa-Base's size"
TITLES = {
    "flickr30k": "Flickr30K",
    "mscoco": "MSCOCO",
    "imagenet1k": "ImageNet-1K",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "caltech101": "Caltech-101",
    "dtd": "DTD",
    "pets": "Oxford-IIIT Pet",
    "dogs": "Stanford Dogs",
    "cub200": "CUB-200",
    "flowers102": "Flowers102",
    "mnist": "MNIST",
    "food101": "Food101",
}
ZERO_SHOT = ("imagenet1k", "imagenet_v2", "imagenet_a", "imagenet_r", "cifar10", "cifar100", "stl10", "caltech101")
PROBED = ("dtd", "pets", "dogs", "cub200", "flowers102", "mnist", "food101")
ON_SERVER = "its answers are kept back; VQA's server scores samples/vqa_results.json of an evaluation on test2015's questions"
TABLE_5 = ("table5.itc", "table5.coca", "table5.sycoca")
"""Rows that are a family; the others are steps between them."""


def _table_5_parts() -> tuple[Part, ...]:
    names = dict.fromkeys(name for name, _ in PAPER_COLUMNS)
    return tuple(
        Part(name, TITLES[name], "classification", TOP1) if name in ZERO_SHOT else Part(name, TITLES[name], "retrieval", MEANS)
        for name in names
    )


TABLES: tuple[PaperTable, ...] = (
    PaperTable(
        "1",
        "zero-shot retrieval",
        CC12M,
        tuple(Part(name, TITLES[name], "retrieval", RECALLS) for name in ("flickr30k", "mscoco")),
        {
            "CoCa": (44.2, 72.4, 81.7, 31.3, 59.7, 70.8, 16.3, 37.1, 48.9, 15.3, 35.8, 47.0),
            "SyCoCa": (46.6, 76.3, 83.6, 35.9, 64.6, 75.6, 18.7, 41.0, 53.6, 17.2, 39.7, 51.6),
        },
    ),
    PaperTable(
        "2",
        "captioning and visual question answering",
        CC12M,
        (
            Part("mscoco", TITLES["mscoco"], "captioning", CAPTIONS, beside=FINE_TUNED),
            Part(
                "nocaps",
                "NoCaps",
                "captioning",
                CAPTIONS,
                "the paper's numbers are of the test split, by NoCaps' server; ours of val, scored here",
                FINE_TUNED,
            ),
            Part(
                VQA,
                "VQA",
                "vqa",
                (
                    Cell("val", "accuracy"),
                    Cell("test-dev", "", kept_back=ON_SERVER),
                    Cell("test", "", kept_back=ON_SERVER),
                ),
                "the paper's models were fine-tuned on VQA; ours is the checkpoint that is named, on the questions it was given",
            ),
        ),
        {
            "CoCa": (21.3, 22.6, 71.1, 16.2, 12.7, 22.4, 53.4, 10.4, 43.0, 39.1, 39.6),
            "SyCoCa": (22.4, 23.6, 75.6, 16.8, 12.9, 22.8, 54.8, 10.5, 46.9, 42.6, 42.9),
        },
        remark="the paper's captions come after fine-tuning on MSCOCO with cross entropy",
        unit="Captions' scores times 100, answers in percent: as the paper prints them.",
    ),
    PaperTable(
        "3",
        "zero-shot classification",
        CC12M,
        tuple(Part(name, TITLES[name], "classification", ACCURACY) for name in ZERO_SHOT),
        remark=f"the paper's numbers are not known: {LOST}. Its text says that SyCoCa is better than CoCa on 7 of 8 sets, by 2.5 % "
        "on average",
        averaged=True,
    ),
    PaperTable(
        "4",
        "linear probe",
        CC12M,
        tuple(Part(name, TITLES[name], "linear_probe", ACCURACY) for name in PROBED),
        remark=f"the paper's numbers are not known: {LOST}. Its text says that SyCoCa is better than CoCa on 6 of 7 sets; it "
        "does not say how the classifier was fitted",
        averaged=True,
    ),
    PaperTable(
        "5",
        "training objectives, the rows that are a family",
        "CC3M, a model of CoCa-Base's size; the epochs are not given",
        _table_5_parts(),
        {ROWS[name].title.split(":")[0]: ROWS[name].paper for name in TABLE_5},
        {ROWS[name].title.split(":")[0]: ROWS[name].paper_avg for name in TABLE_5},
        averaged=True,
    ),
)
NOT_HERE: tuple[tuple[str, str], ...] = (
    (
        "Tables 5 to 7, other rows",
        "each row is another training: python -m sycoca_ds.ablations has them (the default of Tables 6 and 7 is Table 5's SyCoCa)",
    ),
    ("Table 8", "configurations of models, no evaluation"),
    (
        "Table 9",
        f"zero-shot retrieval of the 930M model, trained on LAION-2B and COYO-700M; the paper's numbers are not known: {LOST}. "
        "Ours, of any checkpoint, stand in Table 1",
    ),
    (
        "Table 10",
        f"captioning of the 930M model; the paper's numbers are not known: {LOST}. Ours stand in Table 2",
    ),
)
"""Tables that have no place of their own, and why."""
