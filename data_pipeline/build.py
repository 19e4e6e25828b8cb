"""One data set folder in one command: curate, download, verify and report; or, of tars that are there already, adopt,
verify, report."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.catalogue.curate import plan as curation
from data_pipeline.command_line import counted
from data_pipeline.download.job import check_options, download, most_frequent
from data_pipeline.download.job import plan as planned_download
from data_pipeline.download.options import DownloadOptions
from data_pipeline.errors import UserError
from data_pipeline.files import check_folder, check_no_run
from data_pipeline.shards.adopt import adopt
from data_pipeline.shards.verify import print_summary, verify

Source = Literal["laion2b", "relaion2b", "coyo700m", "cc12m", "cc3m", "generic", "wds", "folder"]
LAST_STAGES = ("verify: then, every tar", "report: then, the funnel")
ADOPTION = ("source", "metadata", "out", "processes", "verify_processes")
"""Options of `build` that mean something for tars that are there already."""
PACKING = (
    *("source", "pictures", "captions", "captions_split", "url_col", "caption_col", "out"),
    *("image_size", "min_image_size", "max_pixels", "shard_size", "processes", "verify_processes"),
)
"""Options of `build` that mean something for pictures that are there already."""


@dataclass(frozen=True, kw_only=True)
class AdoptCommand:
    """Makes a data set folder of tars that are already downloaded: links, verifies, indexes, reports. Status as of build."""

    tars: str
    """Folder of the tars, or a glob in quotes."""
    out: Path
    """The data set folder. Its tars are hard links where the file system allows it, else symbolic ones."""
    processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""

    def run(self) -> int:
        check_no_run(self.out)
        return _adopted("--tars", self.tars, self.out, {"--processes": self.processes})


@dataclass(frozen=True, kw_only=True)
class BuildCommand(DownloadOptions, CurateOptions):
    """Catalogue to verified shards: curate, download, verify and report, into one data set folder. The same command
    resumes. Status 0: all is well; 1: built without the tars that it names; 2: not built, in a line what to do."""

    metadata: str = ""
    """Catalogue: a parquet, tsv, csv or jsonl file, a folder of them, or a glob in quotes; with --source wds tars."""
    source: Source = "generic"
    """Whose schema the catalogue has; wds: there is none, --metadata names tars that are already downloaded; folder: --pictures
    is a folder of pictures on this machine."""
    pictures: Path | None = None
    """With --source folder: the pictures, folders inside it included."""
    captions: str | None = None
    """With --source folder: a csv, tsv or jsonl with the columns file and caption (--url-col and --caption-col for others);
    `texts`: NAME.txt beside NAME.jpg; `folders`: folders are called like classes; Karpathy's dataset_flickr30k.json or
    dataset_coco.json. Not given: what is there of the first three, in this order."""
    captions_split: tuple[str, ...] = ()
    """Which pictures of Karpathy's list: train, restval, val, test. Not given: all."""
    verify_processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""
    dry_run: bool = False
    """Say what would be done, and what is done already; change nothing."""

    def run(self) -> int:
        check_no_run(self.out)
        if self.source != "folder" and (self.pictures is not None or self.captions is not None or self.captions_split):
            raise UserError("--pictures, --captions and --captions-split go with --source folder")
        if self.source != "folder" and not self.metadata:
            raise UserError(
                "--metadata: expected a catalogue, or with --source wds tars; pictures of this machine: --source folder"
            )
        if self.source == "folder":
            return self._pack()
        if self.dry_run:
            print("\n".join(self._plan()))
            return 0
        if self.source == "wds":
            return self._adopt()
        check_options(self)
        curate(self)
        state = download(self.out, self)
        if not state["downloaded"]:
            raise UserError(f"{self.out}: none of {state['requested']} rows arrived ({most_frequent(state['failed'])})")
        return _finish(self.out, self.verify_processes, "delete them")

    def _plan(self) -> list[str]:
        """What `run` would do, stage by stage, as far as it can be known now."""
        if self.source == "wds":
            check_folder(self.out / "shards")
            return [f"adopt: link the tars that --metadata {self.metadata} names into {self.out / 'shards'}", *LAST_STAGES]
        check_options(self)
        lines = curation(self)
        curated = (self.out / "canonical" / "curate.json").exists()
        downloading = planned_download(self.out, self) if curated else ["download: then, the rows that are left"]
        return [*lines, *downloading, *LAST_STAGES]

    def _refuse_others(self, known: tuple[str, ...], why: str) -> None:
        """Raises `UserError` for options of what is not done here."""
        others = [field for field in fields(self) if field.name not in (*known, "dry_run")]
        given = [field.name for field in others if getattr(self, field.name) != field.default]
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UserError(f"{options}: without effect with --source {self.source}, {why}; leave that out")

    def _pack(self) -> int:
        """Packs pictures of this machine."""
        from data_pipeline.local.build import pack_folder, planned
        from data_pipeline.local.packing import How

        self._refuse_others(PACKING, "whose pictures are neither curated nor downloaded")
        if self.pictures is None:
            raise UserError("--source folder: expected --pictures FOLDER")
        check_options(self)
        columns = {"file_col": self.url_col, "caption_col": self.caption_col, "splits": self.captions_split}
        how = How(self.image_size, self.min_image_size, self.max_pixels)
        if self.dry_run:
            print("\n".join([*planned(self.pictures, self.captions, self.out, how, self.shard_size, **columns), *LAST_STAGES]))
            return 0
        state = pack_folder(self.pictures, self.captions, self.out, how, self.shard_size, self.processes, **columns)
        pictures, captions = counted(state["downloaded"], "picture"), counted(state["captions"], "caption")
        tars = counted(len(state["shards"]), "tar")
        print(f"{self.out / 'shards'}: {pictures} with {captions} in {tars}", file=sys.stderr, flush=True)
        return _finish(self.out, self.verify_processes, "delete them")

    def _adopt(self) -> int:
        """Adopts the tars whole. Raises `UserError`, before anything is done, for options of what is curated or downloaded."""
        self._refuse_others(ADOPTION, "whose tars are taken as they are")
        processes = {"--processes": self.processes, "--verify-processes": self.verify_processes}
        return _adopted("--metadata", self.metadata, self.out, processes)


def _adopted(option: str, tars: str, out: Path, processes: dict[str, int]) -> int:
    """Links, verifies and reports; returns the status.

    Args:
        option: by which the tars were given. processes: what was given of them, by option; the smallest counts.
    """
    for name, count in processes.items():
        if count < 1:
            raise UserError(f"{name} {count}: expected at least 1")
    linked = adopt(tars, out, option)
    print(f"{out / 'shards'}: {linked} tars", file=sys.stderr, flush=True)
    return _finish(out, min(processes.values()), "mend them in the mirror (git lfs pull, or download them again)")


def _finish(folder: Path, processes: int, mend: str) -> int:
    """Verifies and reports; returns the status: 1 if tars were left out."""
    from data_pipeline.report.writing import report  # with pyarrow, which asking for help need not wait for

    summary = verify(folder, processes)
    print_summary(folder, summary)
    report(folder)
    print(f"{folder}: built; the funnel is {folder / 'funnel.html'}", file=sys.stderr, flush=True)
    if summary["damaged"]:
        left_out = f"without {len(summary['damaged'])} of {summary['tars']} tars, named above"
        print(f"{folder}: {left_out}: {mend} and give the same command again", file=sys.stderr, flush=True)
    return 1 if summary["damaged"] else 0
