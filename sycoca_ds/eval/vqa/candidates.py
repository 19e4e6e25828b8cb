"""The answers among which a model chooses: 3,128 of VQA v2 in ALBEF, BLIP and SyCoCa."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.eval.vqa.normalisation import normalised

LEAST = 9
"""Questions that an answer has to be the most frequent one of (bottom-up-attention-vqa's filter, over train and val: 3,129 answers,
one of them empty; ALBEF's list is that without it)."""


def frequent(answers: Iterable[str], least: int = LEAST) -> tuple[str, ...]:
    """Normalised answers that occur at least so often, without the empty one, the most frequent first, equally frequent ones in
    order of appearance. The filter's own normalisation is the official one, and then without commas.

    Args:
        answers: one a question, VQA's multiple_choice_answer.
    """
    counts = Counter(normalised(answer).replace(",", "") for answer in answers)
    return tuple(answer for answer, count in counts.most_common() if count >= least and answer)


def read_candidates(files: Sequence[str], least: int = LEAST) -> tuple[str, ...]:
    """
    Args:
        files: one with a list: a JSON list, a JSON object whose keys are answers (trainval_ans2label.json), or lines of text; or
            VQA's annotations, of all of which the frequent answers are taken.

    Raises:
        UserError: a file that is neither, an empty list, an answer twice.
    """
    contents = []
    for file in files:
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--answers {file}: not readable ({error})") from error
        try:
            contents.append(json.loads(text) if Path(file).suffix == ".json" else text.splitlines())
        except ValueError as error:
            raise UserError(f"--answers {file}: not JSON ({error}); expected a list, or VQA's annotations") from error
    try:
        if all(isinstance(content, dict) and "annotations" in content for content in contents):
            found = frequent((each["multiple_choice_answer"] for content in contents for each in content["annotations"]), least)
        elif len(contents) == 1:
            found = tuple(answer for answer in contents[0] if answer)
        else:
            raise UserError(f"--answers {' '.join(files)}: expected one list, or VQA's annotations of one or several splits")
    except (KeyError, TypeError) as error:
        raise UserError(f"--answers {' '.join(files)}: not as VQA's annotations ({error!r})") from error
    if not found or not all(isinstance(answer, str) for answer in found):
        raise UserError(f"--answers {' '.join(files)}: expected answers, as texts; found {'none' if not found else found[:3]}")
    if len(set(found)) < len(found):
        raise UserError(f"--answers {' '.join(files)}: {Counter(found).most_common(1)[0][0]!r} stands there twice")
    return found
