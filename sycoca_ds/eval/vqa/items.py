"""`--questions` -> the questions that are asked, each with its picture.

Legend: Q questions, P pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.errors import UserError
from data_pipeline.pictures import FetchError
from sycoca_ds.data.questions import Questions, read_questions
from sycoca_ds.eval.collection import Picture, PictureSet
from sycoca_ds.eval.datasets.reading import Files
from sycoca_ds.eval.vqa.candidates import LEAST, frequent, read_candidates

OPTION = "--questions"
HOWS = ("rank", "generate")
OFFICIAL = {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793}
"""Questions of VQA v2 by data_subtype."""


@dataclass(frozen=True)
class Request:
    """What is asked for, before a model or its pictures are opened."""

    questions: str
    """QUESTIONS.json[,ANNOTATIONS.json][,PICTURES]."""
    answers: tuple[str, ...] = ()
    """Files of `candidates.read_candidates`; none: the answers of the questions themselves."""
    least: int = LEAST
    how: str = "rank"
    keep: int = 128
    """Candidates that are ranked to their end."""

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise UserError(f"--answering {self.how}: expected one of {', '.join(HOWS)}")
        for flag, value in (("--rank-first", self.keep), ("--answer-count", self.least)):
            if value < 1:
                raise UserError(f"{flag} {value}: expected at least 1")

    @property
    def pictures(self) -> Path | None:
        """The folder of the pictures, where one is given."""
        last = self.questions.split(",")[-1]
        return None if last.endswith(".json") else Path(last)

    def read(self) -> Questions:
        files = self.questions.split(",")
        return read_questions(",".join(files if self.pictures is None else files[:-1]), OPTION)

    def open(self, collection: PictureSet) -> Asked:
        """Finds the questions on a collection's pictures. Raises `UserError`: there are none, or no candidates."""
        questions = collection.questions if isinstance(collection, QuestionPictures) else self.read()
        names = [picture.key for picture in collection.pictures]
        if not isinstance(collection, QuestionPictures):
            names = questions.names_of(picture.url for picture in collection.pictures)
        number_of = {name: number for number, name in reversed(list(enumerate(names)))}
        picture_Q = np.array([number_of.get(name, -1) for name in questions.table["picture"].to_pylist()])
        there = np.flatnonzero(picture_Q >= 0)
        if not len(there):
            raise UserError(
                f"{OPTION} {self.questions}: none of {len(questions):,} questions is on a picture of {collection.folder} (the "
                f"first one's is {questions.table['picture'][0]}); give the folder these questions were made for"
            )
        there = there[np.argsort(picture_Q[there], kind="stable")]  # a picture's questions together: it is encoded once for them
        candidates, source = self._candidates(questions)
        return Asked(
            self, questions, questions.table.take(there), picture_Q[there], len(questions) - len(there), candidates, source
        )

    def _candidates(self, questions: Questions) -> tuple[tuple[str, ...], str]:
        """(the answers to choose from, where they come from)."""
        if self.answers:
            return read_candidates(self.answers, self.least), " ".join(self.answers)
        if not questions.answered:
            raise UserError(f"{OPTION} {self.questions} has no answers: give those to choose from, --answers FILE")
        given = questions.table["answers"].to_pylist()
        if questions.by_url:
            return tuple(dict.fromkeys(answers[0] for answers in given)), "the questions' own answers"
        most = (max(answers, key=answers.count) for answers in given)
        found = frequent(most, self.least)
        if not found:
            raise UserError(
                f"{OPTION} {self.questions}: no answer occurs {self.least} times; give --answers FILE, or --answer-count 1"
            )
        return found, f"the questions' own answers, those of at least {self.least} questions"


@dataclass(frozen=True)
class Asked:
    """Questions on a collection's pictures, and the answers to choose from."""

    request: Request
    questions: Questions
    """All of the file."""
    table: pa.Table
    """Those that are asked, in the order of their pictures."""
    picture_Q: np.ndarray
    """int64, the number of each one's picture in the collection."""
    left_out: int
    """Questions on pictures that are not there."""
    candidates: tuple[str, ...]
    candidates_from: str

    @property
    def digest(self) -> str:
        """Of all that answers and their score depend on beside weights and pictures."""
        parts = (self.questions.digest, self.candidates, self.request.how, self.request.keep)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def told(self) -> str:
        """One line for people."""
        official = OFFICIAL.get(self.questions.subset, len(self.questions))
        odd = f", of {official:,} official ones" if official != len(self.questions) else ""
        odd += f"; {self.left_out:,} more are on pictures that are not there" if self.left_out else ""
        return (
            f"questions ({self.questions.name}): {len(self.table):,} on {len(np.unique(self.picture_Q)):,} pictures{odd}; "
            f"{len(self.candidates):,} candidate answers, from {self.candidates_from}"
        )


class QuestionPictures(PictureSet):
    """The pictures that VQA v2's questions are on, as COCO publishes them: a folder of files, or one with such folders."""

    compared_by_url = False

    def __init__(self, request: Request, image_size: int):
        """image_size: S. Raises `UserError`: the folder or a picture is not there, or the questions name no COCO pictures."""
        folder, self.questions = request.pictures, request.read()
        if self.questions.by_url:
            raise UserError(f"{OPTION} {request.questions}: these questions name pictures by urls; give --data FOLDER, no pictures")
        ids = list(dict.fromkeys(self.questions.table["picture"].to_pylist()))
        subset = self.questions.subset.replace("test-dev", "test")
        named = [f"COCO_{subset}_{int(number):012d}.jpg" for number in ids]
        ways = [(place, names) for place in (folder, folder / subset) for names in (named, [f"{int(n):012d}.jpg" for n in ids])]
        place, names = next(((place, names) for place, names in ways if (place / names[0]).is_file()), ways[0])
        self.files = Files(place, names)
        missing = [name for name in names if not (place / name).is_file()]
        if missing:
            raise UserError(
                f"{OPTION} {request.questions}: {len(missing):,} of {len(names):,} pictures are not in {place}, the first is "
                f"{missing[0]}; expected COCO's {subset} (https://cocodataset.org/#download)"
            )
        found = hashlib.sha256(repr(names).encode())
        for name in names:
            state = (place / name).stat()
            found.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
        pictures = [Picture(number, name, number) for number, name in zip(ids, names, strict=True)]
        super().__init__(place, image_size, found.hexdigest(), pictures, [], [])

    def pixels(self, number: int) -> np.ndarray:
        try:
            return self.files.pixels(number)
        except (FetchError, OSError) as error:
            why = error.reason if isinstance(error, FetchError) else error.strerror
            raise UserError(f"{self.folder / self.files.names[number]} cannot be read ({why}): restore it") from error
