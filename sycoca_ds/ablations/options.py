"""What can be asked of the ablations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sycoca_ds.ablations.tables import PAPER_TITLES


@dataclass(frozen=True)
class AblationOptions:
    """Which rows, how often, on what. The options of each training come after `--`."""

    evaluate: tuple[str, ...] = ()
    """Evaluation sets, NAME=DATA_DIR or NAME=DATA_DIR,LABELS.json. The paper's columns stand beside ours for sets named
    flickr30k, mscoco, imagenet1k, cifar10, stl10 or caltech101."""
    table: tuple[str, ...] = tuple(PAPER_TITLES)
    """Tables of the paper, or `masking`, ours: what chooses the masks."""
    rows: tuple[str, ...] = ()
    """Only these rows of them, by name (table5.coca); docs/ablations.md lists all."""
    seeds: tuple[int, ...] = (0,)
    """Each row is trained once with each."""
    out: Path = Path("runs/ablations")
    """Folder for everything: ROW/seed_S/, ablations.json, ablations.md."""
    launch: str = ""
    """What stands before train.py; empty: deepspeed with every GPU, or with 2 processes on a machine without one. A free
    --master_port is added for deepspeed and torchrun."""
    regions: tuple[str, ...] = ()
    """NAME=FILE_OR_FOLDER: where in the pictures of that evaluation set the objects are; the masks are measured there, too."""
    captioning: bool = False
    """Also score captions (CIDEr; no part of avg)."""
    whole_pictures: int = 0
    """Steps of captioning alone, on whole pictures, that follow each run from its weights: CIDEr is measured after them, too.
    Masked training shows the text decoder half of the patches only. 0: none."""
    compositions: tuple[str, ...] = ()
    """NAME=sugarcrepe=FOLDER[,PICTURES]: captions that nearly fit, for that evaluation set's row."""
    questions: tuple[str, ...] = ()
    """NAME=FILE: questions on the pictures of that evaluation set, for --answering."""
    answering: int = 0
    """Steps of question answering that follow each run from its weights, on --answering-files. 0: none."""
    answering_files: tuple[str, ...] = ()
    """Questions on the training's pictures, as `data.questions` takes them."""
    equal_compute: str = ""
    """Name of a row: every row trains for as many steps as cost what that one's do, by the FLOPs formula on the data's own
    captions."""
    against: str = ""
    """Name of a row: the others are compared with it over the same pictures."""
    keep_going: bool = False
    """After a run that fails go on with the next; its numbers are missing, with the reason."""
    dry_run: bool = False
    """List the runs, how far they are, and their commands; start nothing."""
