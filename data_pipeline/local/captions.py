"""Which file has which captions, as their owner wrote it down: a table, texts beside the pictures, or names of folders.

A source gives (file, caption) pairs, the file as it is written there; a caption is None where none was found.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_pipeline.catalogue.captions import lines_of
from data_pipeline.catalogue.text_catalogues import SEPARATORS, csv_rows, json_rows, tsv_rows
from data_pipeline.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
FILE_COLUMNS = ("file", "file_name", "filename", "filepath", "image", "image_path", "path", "img", "picture", "photo", "url")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description", "sentence", "comment")
METADATA = ("metadata.jsonl", "metadata.csv")
"""Tables that Hugging Face's ImageFolder has among its pictures."""
MOST_TEXT_BYTES = 1 << 20
TEMPLATE = "a photo of a {c}"
Pair = tuple[str, str | None]


def refuse(error: OSError) -> None:
    """Raises `UserError` for a folder that cannot be read."""
    raise UserError(
        f"{error.filename}: a folder that cannot be read ({error.strerror}); ask for the right, or move it away: its pictures "
        "would be missing"
    )


def say_so(error: OSError) -> None:
    """Says on stderr that a folder is passed over."""
    print(f"{error.filename}: a folder that cannot be read ({error.strerror}): passed over", file=sys.stderr, flush=True)


def find_pictures(folder: Path, unread: Callable[[OSError], None] = refuse) -> list[str]:
    """Files called like pictures, relative to the folder, in order; hidden ones and linked folders are passed over.

    Args:
        unread: called for each folder that cannot be read, and raises what it wants.

    Raises:
        UserError: such a folder, where nothing else was asked for.
    """
    found = []
    for root, folders, names in os.walk(folder, onerror=unread):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(root, name), folder))
    return sorted(found)


def read_captions(
    folder: Path, captions: str | None, file_col: str | None, caption_col: str | None, splits: Sequence[str] = ()
) -> tuple[str, Iterator[Pair]]:
    """(where captions come from, in words; the pairs).

    Args:
        captions: a table's path, a list of Karpathy's (.json), `texts` (NAME.txt beside NAME.jpg) or `folders`; None: Hugging
            Face's table in the folder, else texts if there is one, else the names of folders.
        splits: of Karpathy's list, of which there are all pictures in one file; none: all.

    Raises:
        UserError: no such table, or one without the columns, naming it.
    """
    if captions is None:
        table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
        captions = str(table) if table else "texts" if _has_texts(folder) else "folders"
    if captions.lower().endswith(".json"):
        _refuse_columns(file_col, caption_col)
        return ", ".join([f"captions of {captions}", *splits]), _karpathy_pairs(Path(captions), splits)
    if splits:
        raise UserError(
            "--captions-split: goes with --captions FILE.json, a list as Karpathy's, which says of each picture where it belongs"
        )
    if captions not in ("texts", "folders"):
        return f"captions of {captions}", table_rows(Path(captions), file_col, caption_col)
    _refuse_columns(file_col, caption_col)
    if captions == "texts":
        return "a text beside each picture", _texts(folder)
    return f"names of folders, as {TEMPLATE!r}", _classes(folder)


def _refuse_columns(file_col: str | None, caption_col: str | None) -> None:
    given = [option for option, value in (("--url-col", file_col), ("--caption-col", caption_col)) if value]
    if given:
        raise UserError(f"{given[0]}: names a column, and captions here are no table; leave it out, or give --captions FILE.csv")


def _karpathy_pairs(path: Path, splits: Sequence[str]) -> Iterator[Pair]:
    """dataset_flickr30k.json and dataset_coco.json of Karpathy and Fei-Fei (2015): images with filename, COCO's also filepath,
    split and sentences. Raises `UserError`: another layout, or no such split."""
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        rows = [
            (
                os.path.join(image.get("filepath", ""), image["filename"]),
                image["split"],
                [said["raw"] for said in image["sentences"]],
            )
            for image in images
        ]
    except OSError as error:
        raise UserError(f"--captions {path}: cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        layout = '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}'
        raise UserError(f"--captions {path}: {type(error).__name__}: {error}; expected a list as Karpathy's, {layout}") from None
    there = sorted({split for _, split, _ in rows})
    unknown = [split for split in splits if split not in there]
    if unknown:
        raise UserError(f"--captions-split {unknown[0]}: no picture of {path} is in it; there are {', '.join(there)}")
    for file, split, said in rows:
        if not splits or split in splits:
            yield from ((file, sentence) for sentence in said)


def table_rows(
    path: Path,
    file_col: str | None,
    text_col: str | None,
    usual: tuple[str, ...] = CAPTION_COLUMNS,
    option: str = "--captions",
    names: tuple[str, str] = ("--url-col", "--caption-col"),
) -> Iterator[Pair]:
    """Rows of a csv, tsv or jsonl with a header; of a list of captions in a jsonl a pair each.

    Args:
        usual: what the second column is called where it is not said.
        option, names: by which the table and its columns are given.

    Raises:
        UserError: no such table, not readable, or without the columns.
    """
    columns = ((file_col, FILE_COLUMNS, names[0]), (text_col and text_col.removesuffix("[]"), usual, names[1]))
    kind, choices = path.suffix.lower(), ", or `texts`, or `folders`" if option == "--captions" else ""
    if kind not in TABLES:
        raise UserError(f"{option} {path}: expected a file that ends with {', '.join(TABLES)}{choices}")
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file")
    try:
        _check_encoding(path, option)
        if kind in (".jsonl", ".ndjson"):
            yield from _json_pairs(path, columns)
            return
        rows = tsv_rows(path) if kind == ".tsv" else _csv_rows(path, columns)
        header = next(rows, [])
        if not header:
            raise _empty(path, "a header and rows")
        at = [_column(path, header, *wanted) for wanted in columns]
        for row in rows:
            file, caption = (row[place] if place < len(row) else "" for place in at)
            yield file, caption
    except UserError as error:
        raise UserError(str(error).replace("--metadata", option)) from None
    except (OSError, UnicodeError) as error:
        raise UserError(f"{option} {path}: cannot be read ({error})") from None


def _check_encoding(path: Path, option: str) -> None:
    """Raises `UserError` for a table that is not UTF-8: of a stranger's catalogue wrong bytes become U+FFFD, of one's own that is
    another encoding, and names and captions would be damaged without a word."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                advice = "save it as that (in Excel: CSV UTF-8), or `iconv -f CP1252 -t UTF-8`"
                raise UserError(f"{option} {path}: line {number} is not UTF-8: {advice}") from None


Columns = tuple[tuple[str | None, tuple[str, ...], str], ...]
"""Of each column its name, if it was given, those that are usual, and the option that names it."""


def _csv_rows(path: Path, columns: Columns) -> Iterator[list[str]]:
    """Rows of a csv whose fields are separated as its header has the columns, else the most fields."""

    def fit(separator: str) -> tuple[bool, int]:
        try:
            header = next(csv_rows(path, separator), [])
        except UserError:  # said by the rows themselves, if no other fits
            return False, 0
        return all(_places(header, given, usual) for given, usual, _ in columns), len(header)

    return csv_rows(path, max(SEPARATORS, key=fit))


def _empty(path: Path, expected: str) -> UserError:
    return UserError(f"--metadata {path}: is empty; expected {expected}")


def _json_pairs(path: Path, columns: Columns) -> Iterator[Pair]:
    names: list[str] | None = None
    number = 0
    for number, row in json_rows(path):
        if not row:
            yield f"line {number}", None
            continue
        if names is None:
            keys = list(row)
            names = [keys[_column(path, keys, *wanted)] for wanted in columns]
        file, caption = (row.get(name) for name in names)
        for one in caption if isinstance(caption, list) else [caption]:
            yield file if isinstance(file, str) else json.dumps(file), one if isinstance(one, str) else None
    if number == 0:
        raise _empty(path, "an object a line")


def _places(header: list[str], given: str | None, usual: tuple[str, ...]) -> list[int]:
    lower = [name.strip().lower() for name in header]
    return [lower.index(name) for name in ([given.lower()] if given else usual) if name in lower]


def _column(path: Path, header: list[str], given: str | None, usual: tuple[str, ...], option: str) -> int:
    """The place of a column. Raises `UserError`: none, or several."""
    found = _places(header, given, usual)
    if not found:
        expected = repr(given) if given else f"one of {', '.join(usual)}"
        there = ", ".join(map(repr, header))[:200] or "nothing"
        raise UserError(f"--metadata {path}: no column {expected} ({there} there): name it with {option}")
    return found[0]


def _has_texts(folder: Path) -> bool:
    return any(os.path.isfile(_text_of(folder / name)) for name in find_pictures(folder))


def _text_of(picture: Path) -> str:
    return os.path.splitext(picture)[0] + ".txt"


def _texts(folder: Path) -> Iterator[Pair]:
    """Where half of the texts and more have several lines each line is a caption, as in a mirror's tars; else a line break is one
    inside a caption."""
    texts = {name: _content(_text_of(folder / name)) for name in find_pictures(folder)}
    several = [text is not None and len(lines_of(text)) > 1 for text in texts.values()]
    a_line = 2 * sum(several) >= max(1, sum(text is not None for text in texts.values()))
    for name, text in texts.items():
        lines = lines_of(text) if text is not None and a_line else []
        if lines:
            yield from ((name, line) for line in lines)
        else:
            yield name, text


def _content(path: str) -> str | None:
    """None: there is no text, or it is no file of a caption's size. Raises `UserError` for one that is not UTF-8, as of a table."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > MOST_TEXT_BYTES:
            return None
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError:
        return None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8: `iconv -f CP1252 -t UTF-8`, or give --captions FILE") from None


def _classes(folder: Path) -> Iterator[Pair]:
    for name in find_pictures(folder):
        parent = os.path.basename(os.path.dirname(name))
        said = " ".join(re.sub(r"[_-]+", " ", parent).split())
        yield name, TEMPLATE.format(c=said) if said else None
