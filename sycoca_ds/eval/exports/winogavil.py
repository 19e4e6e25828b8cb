"""WinoGAViL (Bitton et al. 2022): which of 5 to 12 pictures go with a cue? Asked by eval/tasks/association.py.

winogavil/test.parquet, or another place of a split (parquet.py), from nlphuji/winogavil:
candidate_images   the pictures, [{bytes, path}]
candidates         what they are called, in the same order
associations       those of `candidates` that people chose
cue                a word
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sycoca_ds.eval.datasets.reading import Damaged, Question, Split, checked
from sycoca_ds.eval.exports.parquet import ParquetPictures, files_of, first_line, patterns, refuse_paths

IMAGES, CANDIDATES, CHOSEN, CUE = "candidate_images", "candidates", "associations", "cue"
QUESTIONS = 3_563
"""Officially."""
MOST_CANDIDATES = 1_000


def asks(path: Path) -> bool:
    """Whether a parquet file has WinoGAViL's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {IMAGES, CANDIDATES, CHOSEN, CUE} <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return False


@dataclass(frozen=True)
class Winogavil:
    """Its questions; pictures come in the order of the questions, those of two questions twice."""

    def needs(self, split: str) -> tuple[str, ...]:
        return (" or ".join(patterns(split)),)

    def read(self, root: Path, split: str) -> Split:
        import pyarrow as pa
        import pyarrow.parquet as pq

        files, names, places, questions = files_of(root, split), [], [], []
        for number, path in enumerate(files):
            try:
                with pq.ParquetFile(path) as file:
                    refuse_paths(path, file.metadata, IMAGES)
                    groups = [
                        file.read_row_group(group, [CANDIDATES, CHOSEN, CUE]).to_pylist()
                        for group in range(file.metadata.num_row_groups)
                    ]
            except (pa.ArrowException, OSError) as error:
                raise Damaged(f"{path}: not readable as WinoGAViL's ({first_line(error)})") from error
            rows = 0
            for group, asked in enumerate(groups):
                place = 0
                for row in asked:
                    question = _question(f"{path}, row {rows}", row, len(names))
                    questions.append(question)
                    names += [f"{path.name}/{rows:06d}/{number_of}" for number_of in range(question.candidates)]
                    places += [(number, group, place + number_of) for number_of in range(question.candidates)]
                    place, rows = place + question.candidates, rows + 1
        pictures = ParquetPictures(tuple(files), IMAGES, names, np.array(places, dtype=np.int64).reshape(-1, 3))
        official = "" if len(questions) == QUESTIONS else f", officially {QUESTIONS:,}"
        notes = (f"{len(questions):,} questions{official}",)
        return checked(Split(pictures, questions=tuple(questions), notes=notes), files[0].parent)


def _question(where: str, row: dict[str, Any], first: int) -> Question:
    names, chosen, cue = row[CANDIDATES], row[CHOSEN], row[CUE]
    if not isinstance(cue, str) or not cue.strip() or not isinstance(names, list) or not isinstance(chosen, list):
        raise Damaged(f"{where}: expected a cue, candidates and associations")
    right = tuple(place for place, name in enumerate(names) if name in chosen)
    if not right or len(names) > MOST_CANDIDATES:
        raise Damaged(f"{where}: {len(right)} of {len(names)} candidates are among the associations")
    return Question(cue, first, len(names), right)
