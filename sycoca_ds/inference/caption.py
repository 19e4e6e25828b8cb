"""`caption`: a line for each picture.

python -m sycoca_ds.inference caption photo.jpg holiday/ --checkpoint runs/base
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from data_pipeline.command_line import counted
from data_pipeline.errors import UserError
from data_pipeline.local.captions import find_pictures, say_so
from data_pipeline.progress import Progress
from sycoca_ds.eval.options import MOST_BEAMS

if TYPE_CHECKING:
    from sycoca_ds.inference.model import Model


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """Which model is asked, and where."""

    checkpoint: str
    """Run folder (its newest whole checkpoint), one step's folder, or a folder that sycoca_ds/export.py wrote."""
    ema: bool = False
    """Ask the moving average of the weights, of a run with --optim.ema-decay."""
    device: str = "auto"
    """auto (cuda if there is one), cpu, cuda, cuda:1."""
    precision: str = "auto"
    """fp32, bf16 (autocast), or auto: bf16 on a GPU that has it, fp32 elsewhere."""
    batch_size: int = 32
    """Pictures at once. Changes speed and memory only."""

    def check(self) -> None:
        """Raises `UserError`, before anything is opened."""
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: expected at least 1")

    def open(self) -> Model:
        """Raises `UserError`: no model there, damaged, no such device."""
        from sycoca_ds.inference.model import open_model

        return open_model(self.checkpoint, self.device, self.precision, ema=self.ema)


@dataclass(frozen=True, kw_only=True)
class CaptionCommand(AskedModel):
    """Writes a caption for each picture: its path, a tab, the caption. Status 1 if a picture or a folder cannot be read; it is
    named, and the others are written."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Files, or folders of them."""
    beams: int = 1
    """Beams of the beam search, ranked by the mean log-probability of a token; 1 is greedy."""
    max_tokens: int = 30
    """Longest caption in tokens."""
    json: bool = False
    """A JSON object a line: image, caption, and problem where it cannot be read."""
    dry_run: bool = False
    """Say how many pictures would be captioned, by what, and write no caption."""

    def run(self) -> int:
        """The status: 1 if something cannot be read, else 0.

        Raises:
            UserError: an option out of range, no such file, nothing to caption, no model that writes captions.
        """
        self.check()
        names_as_they_are()
        for name in ("beams", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if self.beams > MOST_BEAMS:
            raise UserError(f"--beams {self.beams}: expected at most {MOST_BEAMS}")
        files, unread = files_of(self.images)
        model = self.open()
        if not model.config.captions:
            model.caption(files[:1])  # which says so
        if self.dry_run:
            print(f"caption: {counted(len(files), 'picture')}, {self.batch_size} at once, by {model!r}")
            return 1 if unread else 0
        from sycoca_ds.inference.pictures import readable

        with Progress("write captions", len(files), "pictures") as bar:
            for start in range(0, len(files), self.batch_size):
                batch = files[start : start + self.batch_size]
                places, shown, problems = readable(batch, model.image_size)
                captions = dict(zip(places, model.caption(shown, self.beams, self.max_tokens, self.batch_size), strict=True))
                for place, file in enumerate(batch):
                    self._tell(file, captions.get(place), problems.get(place))
                unread += len(problems)
                bar.advance(len(batch))
        return 1 if unread else 0

    def _tell(self, file: str, caption: str | None, problem: ValueError | None) -> None:
        if problem is not None:
            print(f"{field(file)}: no picture that can be read ({problem})", file=sys.stderr, flush=True)
        if self.json:
            print(json.dumps({"image": file, "caption": caption} | ({"problem": str(problem)} if problem else {})), flush=True)
        elif caption is not None:
            print(f"{field(file)}\t{field(caption)}", flush=True)


FIELD = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {9: r"\t", 10: r"\n", 13: r"\r", 92: r"\\"}


def field(text: str) -> str:
    """A text within a line of fields between tabs: its control characters and backslashes escaped, as `printf %b` reads them."""
    return text.translate(FIELD)


def names_as_they_are() -> None:
    """Lets file names that are not UTF-8 through to stdout, byte for byte."""
    sys.stdout.reconfigure(errors="surrogateescape")


def files_of(given: tuple[str, ...]) -> tuple[list[str], int]:
    """(files, and the pictures in folders; how many folders cannot be read, which are named on stderr).

    Raises:
        UserError: nothing given, not there, or a folder without pictures.
    """

    if not given:
        raise UserError("expected at least one picture: a file, or a folder of them")
    found, unread = [], []

    def pass_over(error: OSError) -> None:
        say_so(error)
        unread.append(error)

    for name in given:
        path = Path(name)
        if path.is_dir():
            inside = find_pictures(path, pass_over)
            if not inside:
                raise UserError(f"{name}: no file in it is called like a picture (.jpg, .png, .webp, ...)")
            found += [str(path / one) for one in inside]
        elif not path.exists():
            raise UserError(f"{name}: no such file")
        else:
            found.append(name)
    return found, len(unread)
