"""Questions on the pictures of a small data set folder, in VQA v2's files."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.shards.manifest import Manifest
from sycoca_ds.data.questions import picture_number

ANSWERS = {
    "yes/no": ("is it noise?", ["yes"] * 7 + ["no"] * 3),
    "number": ("how many are there?", ["two"] * 10),
    "other": ("what is on it?", ["a dog"] * 3 + ["dog"] * 2 + ["the sky over it", "black/white", "cat", "2", "grey"]),
}


def ask(folder: Path, out: Path, subset: str = "train2014") -> str:
    """One to three questions on each picture, and two on pictures that are not there: `QUESTIONS,ANNOTATIONS` beside `out`."""
    manifest, questions, annotations = Manifest.load(folder), [], []
    urls = [url for shard in range(len(manifest.shards)) for url in manifest.index(shard, ["url"])["url"].to_pylist()]
    for place, number in enumerate([int(picture_number(url)) for url in urls] + [10**6, 10**6]):
        for kind in list(ANSWERS)[: 1 + place % 3 if place < len(urls) else 1]:
            question, answers = ANSWERS[kind]
            asked = {
                "image_id": number,
                "question": f"{question} {place % 5}",
                "question_id": 10 * place + list(ANSWERS).index(kind),
            }
            said = [{"answer": answer, "answer_id": at} for at, answer in enumerate(answers[place % 2 :] + answers[: place % 2], 1)]
            questions.append(asked)
            annotations.append(
                {
                    "question_id": asked["question_id"],
                    "image_id": number,
                    "answer_type": kind,
                    "question_type": question.split()[0],
                    "multiple_choice_answer": max(set(answers), key=answers.count),
                    "answers": said,
                }
            )
    for at, annotation in enumerate(annotations[-2:]):
        annotation["question_id"] = questions[at - 2]["question_id"] = 10**7 + at
    beside = out.with_name(f"{out.stem}_annotations.json")
    out.write_text(json.dumps({"data_subtype": subset, "questions": questions}))
    beside.write_text(json.dumps({"data_subtype": subset, "annotations": annotations}))
    return f"{out},{beside}"
