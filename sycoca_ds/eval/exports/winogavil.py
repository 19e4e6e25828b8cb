"""WinoGAViL (Bitton et al. 2022): which of 5 to 12 pictures go with a cue? As DataComp's eval_utils/wino_eval.py asks it.

    winogavil/test.parquet, or another place of a split (parquet.py), from nlphuji/winogavil:
    candidate_images   the pictures, [{bytes, path}]
    candidates         what they are called, in the same order
    associations       those of `candidates` that people chose
    cue                a word

The n pictures whose cosine with "A CUE" or "An CUE" is highest are the answer, n as many as people chose; its score is the Jaccard
index with theirs. DataComp's metric is the mean over questions of 10 to 12 pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sycoca_ds.eval.datasets.reading import Damaged, Question, Split, checked
from sycoca_ds.eval.exports.parquet import ParquetPictures, files_of, first_line, patterns, refuse_paths
from sycoca_ds.eval.exports.published import mean

if TYPE_CHECKING:
    from sycoca_ds.eval.runner.bench import Bench

TASK = "association"
IMAGES, CANDIDATES, CHOSEN, CUE = "candidate_images", "candidates", "associations", "cue"
QUESTIONS = 3_563
"""Officially."""
MOST_CANDIDATES = 1_000
SIZES = {
    "jaccard": (0, math.inf),
    "jaccard_5": (5, 5),
    "jaccard_6": (6, 6),
    "jaccard_10": (10, 10),
    "jaccard_12": (12, 12),
    "jaccard_5_6": (0, 6),
    "jaccard_10_12": (10, math.inf),
}
"""{number: fewest and most pictures of its questions}."""


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


def prompt(cue: str) -> str:
    """As wino_eval.get_clip_prompt."""
    said = cue.lower()
    return f"{'An' if said[0] in 'aeiou' else 'A'} {said}"


def jaccard(right: Sequence[int], said: Sequence[int]) -> float:
    return len(set(right) & set(said)) / len(set(right) | set(said))


def chance(question: Question) -> float:
    """What the index comes to on average where as many pictures are drawn."""
    n, m = len(question.right), question.candidates
    drawn = math.comb(m, n)
    return sum(math.comb(n, k) * math.comb(m - n, n - k) / drawn * k / (2 * n - k) for k in range(n + 1))


def associate(bench: Bench, questions: Sequence[Question]) -> tuple[dict[str, float | None], dict[str, float]]:
    """(numbers, chance) in percent by the sizes of questions, null where there are none. Of equal scores the later picture wins."""
    from sycoca_ds.eval.stats.cosines import exact_unit_vectors

    image_IE = exact_unit_vectors(bench.image_IE)
    text_QE = exact_unit_vectors(bench.encode_texts([prompt(question.cue) for question in questions], "read cues"))
    scores = []
    for question, text_E in zip(questions, text_QE, strict=True):
        score = (image_IE[question.first : question.first + question.candidates] @ text_E).numpy()
        scores.append(jaccard(question.right, np.argsort(score, kind="stable")[-len(question.right) :].tolist()))
    numbers, chances = {}, {}
    for name, (fewest, most) in SIZES.items():
        own = [place for place, question in enumerate(questions) if fewest <= question.candidates <= most]
        numbers[name] = None if not own else 100 * mean(scores[place] for place in own)
        if own:
            chances[name] = 100 * mean(chance(questions[place]) for place in own)
    return numbers, chances
