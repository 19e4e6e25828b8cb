"""`search`: the pictures of a folder that fit a text, or another picture, best.

python -m sycoca_ds.inference search photos/ "a red bicycle" --checkpoint runs/base --sheet found.html
"""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from data_pipeline.command_line import counted
from data_pipeline.errors import UserError, leaves
from data_pipeline.files import check_place, no_folder
from sycoca_ds.inference.caption import AskedModel, field, names_as_they_are

if TYPE_CHECKING:
    import numpy as np

    from sycoca_ds.inference.index import Index
    from sycoca_ds.inference.model import Model

SHEETS = (".png", ".html")
COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class SearchCommand(AskedModel):
    """Lists the pictures of a folder that fit a text best: cosine, a tab, path. Each picture is looked at once: its vector is kept
    by weights and content."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder of pictures, folders inside it included."""
    words: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT]")] = ()
    """What to look for, in quotes. With neither this nor --like the folder is only looked at, for later."""
    like: str | None = None
    """A picture to find others like it, in place of a text."""
    top: int = 12
    """How many are listed."""
    sheet: str | None = None
    """Contact sheet of those, FILE.png or FILE.html."""
    cache: str | None = None
    """Folder in which vectors are kept; `off` keeps none. Default: sycoca_ds/search in XDG_CACHE_HOME, or ~/.cache."""
    json: bool = False
    """A JSON object a line: image, cosine."""
    dry_run: bool = False
    """Say how many pictures would be looked at; look at none, list none."""

    def run(self) -> int:
        """The status: 1 if the sheet cannot be written after all, else 0.

        Raises:
            UserError: an option out of range, no such folder, a place that cannot be written, no model, no readable picture.
        """
        from sycoca_ds.inference.index import best, cache_of, survey, update

        self.check()
        names_as_they_are()
        if len(self.words) > 1:
            text = shlex.quote(" ".join(self.words))
            raise UserError(f"{len(self.words)} words behind {self.folder}: expected one text; quote it: {text}")
        if self.text is not None and not self.text.strip():
            raise UserError("the text is empty: expected what to look for; leave it out to look at the folder only, for later")
        if self.text is not None and self.like is not None:
            raise UserError("expected a text or --like PICTURE, not both")
        if self.top < 1:
            raise UserError(f"--top {self.top}: expected at least 1")
        if self.sheet is not None and Path(self.sheet).suffix.lower() not in SHEETS:
            raise UserError(f"--sheet {self.sheet}: expected a name that ends with .png or .html")
        if Path(self.folder).is_file():
            raise UserError(
                f"{self.folder} is a file: expected the folder of pictures to search in; a picture to compare with is --like"
            )
        if not Path(self.folder).is_dir():
            raise UserError(f"{self.folder}: {no_folder(self.folder)}")
        if self.sheet is not None:
            check_place(Path(self.sheet), f"--sheet {self.sheet}")
        cache = cache_of(self.cache)
        if cache is None:
            leaves("")
        model = self.open()
        query_E = self._query(model)
        if self.dry_run:
            index, todo = survey(model, Path(self.folder), cache)
            there, left = counted(len(index.entries), "picture"), counted(len(todo), "picture")
            print(f"search: {index.folder}: {there}, {changes(index)}; {left} to look at, {self.batch_size} at once, by {model!r}")
            return 0
        index = update(model, Path(self.folder), cache, self.batch_size)
        tell(index)
        if query_E is None:
            return 0
        found = best(index, query_E, self.top)
        for name, cosine in found:
            path = str(index.folder / name)
            print(json.dumps({"image": path, "cosine": cosine}) if self.json else f"{cosine:.4f}\t{field(path)}")
        if self.sheet is not None:
            try:
                write_sheet(Path(self.sheet), index.folder, found, self.text or f"like {self.like}", model)
            except OSError as error:
                print(f"--sheet {self.sheet}: cannot be written ({error.strerror})", file=sys.stderr, flush=True)
                return 1
            print(f"sheet: {self.sheet}", file=sys.stderr, flush=True)
        return 0

    @property
    def text(self) -> str | None:
        """What is looked for."""
        return self.words[0] if self.words else None

    def _query(self, model: Model) -> np.ndarray | None:
        """(E,), or None without a question."""
        if self.like is not None:
            return model.encode_image(self.like)[0]
        if self.text is None:
            return None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            vector = model.encode_text(self.text)[0]
        for warning in said:
            print(f"NOTE: {warning.message}", file=sys.stderr, flush=True)
        return vector


def changes(index: Index) -> str:
    """Since the folder was looked at last."""
    counts = index.counts
    parts = [("new", counts.new), ("changed", counts.changed), ("moved", counts.moved), ("removed", counts.removed)]
    return ", ".join(f"{count} {name}" for name, count in parts if count) or "none changed"


def tell(index: Index) -> None:
    """What changed, and what cannot be read, on stderr."""
    from sycoca_ds.inference.index import NAMED

    looked_at = index.counts.looked_at
    print(f"{index.folder}: {len(index.names)} pictures, {changes(index)}, {looked_at} looked at", file=sys.stderr)
    problems = list(index.problems.items())
    for name, problem in problems[:NAMED]:
        print(f"{field(str(index.folder / name))}: no picture that can be read ({problem})", file=sys.stderr)
    if len(problems) > NAMED:
        print(f"{index.folder}: {len(problems) - NAMED} more cannot be read", file=sys.stderr)
    sys.stderr.flush()


def write_sheet(path: Path, folder: Path, found: list[tuple[str, float]], title: str, model: Model) -> None:
    """A contact sheet of the pictures, whole, as PNG or as a page that holds them. One that can no longer be read is named on
    stderr and has a crossed square.

    Args:
        found: (name within the folder, cosine), at least one.

    Raises:
        OSError: the sheet cannot be written.
    """
    from data_pipeline.files import write_bytes

    shown = [(name, cosine, _shown(folder / name, model.image_size)) for name, cosine in found]
    if path.suffix.lower() == ".png":
        import cv2
        import numpy as np

        from sycoca_ds.eval.pictures import grid
        from sycoca_ds.inference.pictures import THUMBNAIL

        pictures = [picture for _, _, picture in shown]
        labels = [f"{cosine:.3f}\n{field(name)}" for name, cosine, _ in shown]
        sheet = grid(pictures, min(COLUMNS, len(shown)), labels, text_size=12, narrowest=THUMBNAIL)
        write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(sheet[..., ::-1]))[1].tobytes())
        return
    write_bytes(path, page(title, str(folder), shown, repr(model)).encode("utf-8", "replace"))


def _shown(path: Path, side: int) -> np.ndarray:
    """A thumbnail of a file."""
    import cv2
    import numpy as np

    from sycoca_ds.inference.pictures import THUMBNAIL, read_picture, thumbnail

    try:
        return thumbnail(read_picture(path, side))
    except ValueError as error:
        print(f"{field(str(path))}: no picture that can be read any more ({error})", file=sys.stderr, flush=True)
    square, last = np.full((THUMBNAIL, THUMBNAIL, 3), 224, np.uint8), THUMBNAIL - 1
    cv2.line(square, (0, 0), (last, last), (128, 128, 128), 2)
    cv2.line(square, (0, last), (last, 0), (128, 128, 128), 2)
    return square


def page(title: str, folder: str, shown: list[tuple[str, float, np.ndarray]], by: str) -> str:
    import base64

    import cv2
    import numpy as np
    from jinja2 import Environment, PackageLoader

    def data(picture: np.ndarray) -> str:
        jpeg = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()

    rows: list[dict[str, Any]] = [{"name": name, "cosine": cosine, "picture": data(picture)} for name, cosine, picture in shown]
    environment = Environment(loader=PackageLoader("sycoca_ds.inference", "."), autoescape=True)
    return environment.get_template("search.html.j2").render(title=title, folder=folder, rows=rows, by=by)
