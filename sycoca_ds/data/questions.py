"""Questions on pictures: VQA v2's files and those of the drawn worlds.

v2_OpenEnded_mscoco_SPLIT_questions.json (visualqa.org):
    {"data_subtype": "val2014", "questions": [{"image_id": int, "question": str, "question_id": int}]}
v2_mscoco_SPLIT_annotations.json; there is none of the test splits:
    {"annotations": [{"question_id", "question_type", "answer_type", "answers": [{"answer": str}] x 10}]}
SPLIT_questions.json (`data_pipeline scenes`):
    {"name": str, "questions": [{"url", "kind", "question", "answer"}]}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.errors import UserError

ANNOTATORS = 10
"""Answers a question in VQA v2. What has one answer counts as if as many had given it."""
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("picture", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("answer_type", pa.string()),
        ("question_type", pa.string()),
    ]
)


@dataclass(frozen=True)
class Questions:
    """The questions of one file, in its order."""

    name: str
    file: Path
    table: pa.Table
    """`SCHEMA`: id; picture, its url or number; question; answers, those of all annotators, an empty list where they are kept
    back; answer_type (yes/no, number, other; of a drawn world what is asked for) and question_type."""
    by_url: bool
    """Whether pictures are named by their urls; else by COCO's numbers."""
    subset: str
    """VQA's data_subtype, the folder of the pictures; "" of a drawn world."""
    digest: str
    """sha256 of the files."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def answered(self) -> bool:
        """Whether answers are known."""
        return len(self) > 0 and len(self.table["answers"][0]) > 0

    def names_of(self, urls: Iterable[str]) -> list[str]:
        """What these questions call the pictures at these urls; "" for one whose name ends with no number."""
        return [url if self.by_url else picture_number(url) for url in urls]


def picture_number(url: str) -> str:
    """COCO's number in a file's name, COCO_val2014_000000000042.jpg or 000000000042.jpg: "42"; "" where there is none."""
    found = re.search(r"(\d+)$", PurePosixPath(urlsplit(url).path).stem)
    return str(int(found[1])) if found else ""


def weighted_answers(answers: Sequence[str]) -> list[tuple[str, float]]:
    """The distinct answers, each with the share of annotators who gave it, in the order of their first appearance (ALBEF, BLIP)."""
    return [(answer, count / len(answers)) for answer, count in Counter(answers).items()]


def read_questions(text: str, option: str = "data.questions") -> Questions:
    """
    Args:
        text: QUESTIONS.json, or QUESTIONS.json,ANNOTATIONS.json as VQA v2 has them.
        option: what it was given as, for errors.

    Raises:
        UserError: a file that is missing or of neither layout, an id twice, a question without annotation or without answers, a
            field that is null.
    """
    path, *others = (Path(part) for part in text.split(","))
    content = _read(path, option)
    entries = content.get("questions")
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{option}: {path}: expected an object with a list of questions, as VQA v2's and the drawn worlds' files are"
        )
    by_url = "url" in entries[0]
    if by_url and others or len(others) > 1:
        expected = "this file has its answers itself" if by_url else "expected QUESTIONS.json,ANNOTATIONS.json"
        raise UserError(f"{option} = {text}: {expected}")
    annotations = _read(others[0], option).get("annotations") if others else []
    where = path
    try:
        if by_url:
            rows = [_of_world(number, entry) for number, entry in enumerate(entries)]
        else:
            where = others[0] if others else path
            of = {annotation["question_id"]: annotation for annotation in annotations}
            where = path
            missing = [entry["question_id"] for entry in entries if others and entry["question_id"] not in of]
            if missing:
                raise UserError(f"{option}: {others[0]} has no annotation of {len(missing):,} questions, the first is {missing[0]}")
            rows = [_of_vqa(entry, of.get(entry["question_id"])) for entry in entries]
        table = pa.Table.from_pylist(rows, SCHEMA)
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"{option}: {where}: an entry is not as VQA v2's or a drawn world's ({error!r})") from error
    _refuse_nulls(table, option, path, others[0] if others else path)
    seen = Counter(table["id"].to_pylist())
    twice = [number for number, count in seen.items() if count > 1]
    if twice:
        raise UserError(f"{option}: {path}: question_id {twice[0]} stands there {seen[twice[0]]} times")
    digest = hashlib.sha256("".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, *others)).encode()).hexdigest()
    name = str(content.get("name") or path.stem)
    return Questions(name, path, table, by_url, str(content.get("data_subtype", "")), digest)


def _read(path: Path, option: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: {path} is not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {path}: expected an object, found {type(content).__name__}")
    return content


def _refuse_nulls(table: pa.Table, option: str, questions: Path, annotations: Path) -> None:
    for name in SCHEMA.names:
        values = pc.list_flatten(table[name]) if name == "answers" else table[name]
        if values.null_count:
            row = next(row for row in table.to_pylist() if row[name] is None or (name == "answers" and None in row[name]))
            path = annotations if name in ("answers", "answer_type", "question_type") else questions
            what = "an answer" if name == "answers" else name
            raise UserError(f"{option}: {path}: question {row['id']}: {what} is null, expected a text; restore the file")


def _of_world(number: int, entry: dict[str, str]) -> dict[str, Any]:
    kind, answer = entry["kind"], entry["answer"]
    answers = [answer] * ANNOTATORS
    return dict(id=number, picture=entry["url"], question=entry["question"], answers=answers, answer_type=kind, question_type=kind)


def _of_vqa(entry: dict[str, Any], annotation: dict[str, Any] | None) -> dict[str, Any]:
    answers = [] if annotation is None else [answer["answer"] for answer in annotation["answers"]]
    if annotation is not None and not answers:
        raise ValueError(f"question {entry['question_id']} has no answers")
    of = annotation or {"answer_type": "", "question_type": ""}
    return dict(
        id=entry["question_id"],
        picture=str(int(entry["image_id"])),
        question=entry["question"],
        answers=answers,
        answer_type=of["answer_type"],
        question_type=of["question_type"],
    )
