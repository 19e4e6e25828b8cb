"""Captions for a set's server, of pictures whose own are kept back: NoCaps' test split, COCO's test2014. Answers for VQA's.

    captions_SPLIT_FAMILY_results.json: [{"image_id": 4500, "caption": "..."}]      a row an image of the split, ids as numbers

The form of cocodataset.org (format-results), which NoCaps' challenge on EvalAI takes, too; COCO's server also wants the name, and
the files of val2014 and test2014 in one zip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from sycoca_ds.eval.datasets.check import count_of
from sycoca_ds.eval.datasets.official import OfficialCollection
from sycoca_ds.eval.datasets.reading import read_json, some
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.task import NotApplicable
from sycoca_ds.eval.tasks.captioning import write_captions
from sycoca_ds.eval.tasks.vqa import NO_ANSWERS
from sycoca_ds.eval.vqa.answering import Answerer
from sycoca_ds.eval.vqa.items import OFFICIAL
from sycoca_ds.eval.vqa.submission import entries, fault


def no_server_takes(ids: Sequence[str]) -> str:
    """Why no server takes captions of images with these ids; empty where one does."""
    strange = [own for own in ids if not own.isdecimal()]
    return f"ids that are no numbers, which servers take only: {some(strange)}" if strange else ""


def result_rows(ids: Sequence[str], captions: Sequence[str]) -> list[dict[str, Any]]:
    """What a server takes. UserError for an id that is no number."""
    if why := no_server_takes(ids):
        raise UserError(why)
    return [{"image_id": int(own), "caption": caption} for own, caption in zip(ids, captions, strict=True)]


def check_results(path: Path, ids: Sequence[str]) -> int:
    """Reads such a file as a server would; returns how many captions are empty.

    Args:
        ids: of every image of the split, as its list has them.

    Raises:
        UserError: rows other than {image_id: whole number, caption: text}, images twice, images missing or of no such split.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list, found {type(rows).__name__}")
    for row in rows:
        if (
            not isinstance(row, dict)
            or set(row) != {"image_id", "caption"}
            or type(row["image_id"]) is not int
            or not isinstance(row["caption"], str)
        ):
            raise UserError(f"{path}: expected rows of image_id, a whole number, and caption, a text; found {str(row)[:100]}")
    given, wanted = Counter(row["image_id"] for row in rows), {int(own) for own in ids}
    for what, wrong in (
        ("are in it twice", [own for own, times in given.items() if times > 1]),
        ("are missing", wanted - set(given)),
        ("are not of this split", set(given) - wanted),
    ):
        if wrong:
            raise UserError(f"{path}: {len(wrong):,} of {len(wanted):,} images {what}: {some([str(own) for own in sorted(wrong)])}")
    return sum(not row["caption"].strip() for row in rows)


def submit(bench: Bench, place: Path) -> dict[str, Any]:
    """Writes PLACE/captions_SPLIT_FAMILY_results.json of an `OfficialCollection`, and checks it.

    Returns:
        file, images, empty (captions without a word), official (how many images there should be), beams, caption_tokens.

    Raises:
        UserError: see `check_results`. NotApplicable: a model without a text decoder.
    """
    data = bench.collection
    if not isinstance(data, OfficialCollection):
        raise TypeError("expected a split of an official set")
    split, ids = data.facts["split"], [picture.image_id for picture in data.pictures]
    path = place / f"captions_{split}_{bench.config.model.family}_results.json"
    write_json(path, result_rows(ids, write_captions(bench)))
    empty = check_results(path, ids)
    return {
        "file": path.name,
        "images": len(ids),
        "written": len(ids),
        "empty": empty,
        "counts": asdict(count_of(data.read)),
        "official_counts": data.facts["official_counts"],
        "not_as_published": data.facts["not_as_published"],
        "beams": bench.options.beams,
        "caption_tokens": bench.options.caption_tokens,
    }


def submit_answers(bench: Bench, place: Path) -> dict[str, Any]:
    """Writes PLACE/vqa_SPLIT_FAMILY_results.json, answers to all questions of the split, and checks it as the server does.

    Returns:
        as `submit`; written counts answers.

    Raises:
        UserError: questions that are not answered, or answered twice. NotApplicable: a model that answers none.
    """
    data, asked = bench.collection, bench.inputs.questions
    if not bench.config.model.fusion:
        raise NotApplicable(NO_ANSWERS)
    said = Answerer(bench, asked).answers(asked.picture_Q, "")
    results, split = entries(asked.table["id"].to_pylist(), said), data.facts["split"]
    path = place / f"vqa_{split}_{bench.config.model.family}_results.json"
    write_json(path, results)
    wrong = fault(read_json(path), asked.questions)
    official = f"{len(asked.questions):,} questions, officially {OFFICIAL[split]:,}"
    odd = [] if len(asked.questions) == OFFICIAL[split] else [official]
    if wrong is not None and not odd:
        raise UserError(f"{path}: {wrong}")
    return {
        "file": path.name,
        "images": len(data),
        "written": len(results),
        "empty": sum(not entry["answer"].strip() for entry in results),
        "counts": {**asdict(count_of(data.read)), "questions": len(asked.questions)},
        "official_counts": {**data.facts["official_counts"], "questions": OFFICIAL[split]},
        "not_as_published": [*data.facts["not_as_published"], *odd],
        "candidates": len(asked.candidates),
        "answering": asked.request.how,
    }
