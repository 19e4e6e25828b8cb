"""Answers as VQA's server takes them: `[{"question_id": int, "answer": str}]`, one for every question of its file.

Test-dev and test-std take the same file, of all 447,793 questions of test2015 (EvalAI's challenge 830).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sycoca_ds.data.questions import Questions
from sycoca_ds.eval.vqa.items import OFFICIAL


def entries(ids: Sequence[int], answers: Sequence[str]) -> list[dict[str, Any]]:
    """In the order of the ids."""
    found = [{"question_id": int(number), "answer": answer} for number, answer in zip(ids, answers, strict=True)]
    return sorted(found, key=lambda entry: entry["question_id"])


def fault(results: Sequence[dict[str, Any]], questions: Questions) -> str | None:
    """What is wrong with it as a submission for these questions, None if nothing is."""
    if questions.by_url:
        return "these questions are no VQA v2"
    for entry in results:
        if set(entry) != {"question_id", "answer"} or type(entry["question_id"]) is not int or not isinstance(entry["answer"], str):
            return f"{entry} is not {{'question_id': int, 'answer': str}}"
    counts, asked = Counter(entry["question_id"] for entry in results), set(questions.table["id"].to_pylist())
    twice = [number for number, count in counts.items() if count > 1]
    for what, found in (
        ("answered twice", twice),
        ("not asked", sorted(counts.keys() - asked)),
        ("not answered", sorted(asked - counts.keys())),
    ):
        if found:
            return f"{len(found):,} questions are {what}, the first is {found[0]}"
    if questions.subset.startswith("test") and len(asked) != OFFICIAL["test2015"]:
        return f"{len(asked):,} questions; the server takes all {OFFICIAL['test2015']:,} of test2015, for test-dev too"
    return None
