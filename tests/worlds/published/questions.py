"""Questions on the pictures of a small data set folder, in VQA v2's files."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.shards.manifest import Manifest
from sycoca_ds.data.questions import picture_number
from sycoca_ds.eval.collection import Collection

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


def official(data: Path, out: Path, subset: str) -> tuple[str, Path]:
    """(QUESTIONS,ANNOTATIONS on a data set folder's pictures, a folder with these pictures as COCO names them)."""
    files, pictures = ask(data, out / "questions.json", subset), out / "pictures" / subset
    content = [json.loads(Path(file).read_text()) for file in files.split(",")]
    for part, name in zip(content, ("questions", "annotations"), strict=True):
        part[name] = part[name][:-2]  # on pictures that are not there
    for file, part in zip(files.split(","), content, strict=True):
        Path(file).write_text(json.dumps(part))
    pictures.mkdir(parents=True)
    for number, picture in enumerate(Collection(data, image_size=48).pictures):
        with open(picture.shard, "rb") as file:
            file.seek(picture.offset)
            (pictures / f"COCO_{subset}_{number:012d}.jpg").write_bytes(file.read(picture.size))
    return files, pictures


def as_published(data: Path, root: Path) -> Path:
    """VQA v2's folder with val2014 and test2015, and COCO's beside it with the pictures."""
    for subset in ("val2014", "test2015"):
        (root / subset).mkdir()
        files, pictures = official(data, root / subset, subset)
        (root / "sets/coco").mkdir(parents=True, exist_ok=True)
        pictures.rename(root / "sets/coco" / subset)
        (root / "sets/VQA_v2").mkdir(exist_ok=True)
        names = (f"v2_OpenEnded_mscoco_{subset}_questions.json", f"v2_mscoco_{subset}_annotations.json")
        for file, name in zip(files.split(","), names, strict=True):
            if "test2015_annotations" not in name:
                Path(file).rename(root / "sets/VQA_v2" / name)
    return root / "sets"
