"""`python -m sycoca_ds.eval labels`: the file behind `--labels`, from a table of classes or from the names of folders."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from data_pipeline.local.captions import table_rows

if TYPE_CHECKING:
    from data_pipeline.shards.manifest import Manifest

CLASS_COLUMNS = ("class", "label", "category", "class_name", "classname", "name")
TEMPLATE = "a photo of a {c}."
NAMED = 3


@dataclass(frozen=True, kw_only=True)
class LabelsCommand:
    """Writes the class of each picture of a data set folder, for evaluate.py --labels. Without --table a picture's class is the
    name of the folder it lies in."""

    data: Path
    """Data set folder, verified."""
    out: Path
    """JSON to write."""
    table: Path | None = None
    """csv, tsv or jsonl with a column for the picture (its url, its path below --pictures, or its file name where that is unique)
    and one for its class."""
    file_col: str | None = None
    """Column of the picture, where it is not called file, image, url or the like."""
    class_col: str | None = None
    """Column of the class, where it is not called class, label or category."""
    classes: Path | None = None
    """Text file with the names of the classes, one a line, in their order; the column may then hold their numbers from 0 on. Not
    given: the names that are there, sorted."""
    templates: tuple[str, ...] = (TEMPLATE,)
    """Sentences in which a class is asked for; {c} is its name."""
    name: str | None = None
    """What results call the data; default the data set folder's name."""

    def run(self) -> int:
        from data_pipeline.shards.manifest import Manifest, ManifestError

        for template in self.templates:
            if "{c}" not in template:
                raise UserError(f"--templates {template!r}: lacks {{c}}, the place of the class name")
        try:
            urls = list(dict.fromkeys(urls_of(Manifest.load(self.data))))
        except ManifestError as error:
            raise UserError(f"--data {self.data}: {error}") from None
        if self.table is None:
            if self.file_col or self.class_col:
                raise UserError("--file-col and --class-col go with --table")
            found = {url: name for url in urls if (name := folder_of(url))}
            if not found:
                raise UserError(f"--data {self.data}: no picture lies in a folder (first: {urls[0]}); give --table FILE")
        else:
            found = self._of_table(urls)
        names = self._names(set(found.values()))
        number = {name: place for place, name in enumerate(names)} | {str(place): place for place in self._numbers(names, found)}
        labels = {url: number[name] for url, name in found.items()}
        value = {
            "name": self.name or self.data.absolute().name,
            "classes": names,
            "templates": list(self.templates),
            "labels": labels,
        }
        write_json(self.out, value)
        counts = Counter(labels.values())
        rare = min(counts.values())
        print(f"{self.out}: {len(labels)} of {len(urls)} pictures in {len(names)} classes, {rare} to {max(counts.values())} each")
        without = [url for url in urls if url not in labels]
        if without:
            print(f"NOTE: {len(without)} pictures have no class: {listed(without)}", file=sys.stderr, flush=True)
        return 0

    def _of_table(self, urls: list[str]) -> dict[str, str]:
        """url -> class as it is written. Raises `UserError`: two classes for one picture, or no row that names a picture."""
        known, found, strange = addresses(urls), {}, []
        columns = {"usual": CLASS_COLUMNS, "option": "--table", "names": ("--file-col", "--class-col")}
        for file, name in table_rows(self.table, self.file_col, self.class_col, **columns):
            url, name = known.get(file) or known.get(file.replace("\\", "/").removeprefix("./")), (name or "").strip()
            if url is None or not name:
                strange.append(file)
                continue
            if found.setdefault(url, name) != name:
                raise UserError(f"--table {self.table}: {file} is {found[url]!r} and {name!r}: expected one class a picture")
        if not found:
            raise UserError(
                f"--table {self.table}: none of {len(strange)} rows names a picture of {self.data} and its class (first there: "
                f"{strange[0] if strange else 'none'}; first here: {urls[0]})"
            )
        if strange:
            print(f"NOTE: {len(strange)} rows name no picture of {self.data}: {listed(strange)}", file=sys.stderr, flush=True)
        return found

    def _names(self, there: set[str]) -> list[str]:
        if self.classes is None:
            return sorted(there)
        try:
            names = [line.strip() for line in self.classes.read_text("utf-8-sig").split("\n") if line.strip()]
        except (OSError, UnicodeError) as error:
            raise UserError(f"--classes {self.classes}: cannot be read ({error})") from None
        unknown = sorted(there - set(names) - {str(number) for number in range(len(names))})
        if unknown or not names:
            raise UserError(f"--classes {self.classes}: {len(names)} classes there, and {listed(unknown)} is none of them")
        return names

    def _numbers(self, names: list[str], found: dict[str, str]) -> range:
        """The numbers that stand for classes: all, with --classes, unless they are names themselves."""
        return range(len(names)) if self.classes is not None and not set(found.values()) <= set(names) else range(0)


def listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def urls_of(manifest: Manifest) -> Iterator[str]:
    """Of all kept samples, in order."""
    for number in range(len(manifest.shards)):
        yield from manifest.index(number, ["url"])["url"].to_pylist()


def path_of(url: str) -> str:
    """The path in a url, below its host or below --pictures."""
    parts = urlsplit(url)
    return unquote(parts.path).lstrip("/")


def folder_of(url: str) -> str:
    """The class that the folder of a picture is called like; empty: it lies in none."""
    return " ".join(re.sub(r"[_-]+", " ", PurePosixPath(path_of(url)).parent.name).split())


def addresses(urls: list[str]) -> dict[str, str]:
    """What a table may call a picture -> its url: the url, its path, or the file's name where no other picture has it."""
    names = Counter(PurePosixPath(path_of(url)).name for url in urls)
    paths = Counter(map(path_of, urls))
    found = {}
    for url in urls:
        path = path_of(url)
        name = PurePosixPath(path).name
        found |= {name: url} if names[name] == 1 else {}
        found |= {path: url} if paths[path] == 1 else {}
    return found | {url: url for url in urls}
