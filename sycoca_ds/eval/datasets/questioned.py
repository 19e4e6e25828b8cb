"""VQA v2 as visualqa.org publishes it: questions, annotations, and COCO's pictures, which may lie in COCO's own folder.

    v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, v2_mscoco_train2014_annotations.json
    v2_OpenEnded_mscoco_test2015_questions.json, v2_OpenEnded_mscoco_test-dev2015_questions.json

The candidates are the frequent answers of train and val, in the lists of ALBEF, BLIP and SyCoCa.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sycoca_ds.data.questions import read_questions
from sycoca_ds.eval.datasets.reading import AskedFiles, Damaged, Files, Split, checked, needed, present

VALIDATION, TEST_DEV, TEST = "val2014", "test-dev2015", "test2015"
COCO = ("coco", "mscoco", "coco2014", "coco_2014")
"""Folders beside the set's own in which COCO's pictures may lie."""


def pictures_of(split: str) -> str:
    """Where a split's pictures may be."""
    subset = split.replace("test-dev", "test")
    beside = [f"../{home}/{folder}{subset}/" for home in COCO for folder in ("", "images/")]
    return " or ".join((f"{subset}/", f"images/{subset}/", *beside))


@dataclass(frozen=True)
class VqaJson:
    """VQA v2's files, which may lie in folders of their own below the set's."""

    def needs(self, split: str) -> tuple[str, ...]:
        questions = self._file(f"v2_OpenEnded_mscoco_{split}_questions.json")
        return (questions, *([self._annotations(split)] if split == VALIDATION else []), pictures_of(split))

    @staticmethod
    def _file(name: str) -> str:
        return f"{name} or questions/{name} or annotations/{name}"

    def _annotations(self, split: str) -> str:
        return self._file(f"v2_mscoco_{split}_annotations.json")

    def read(self, root: Path, split: str) -> Split:
        path, folder = needed(root, self.needs(split)[0]), needed(root, pictures_of(split))
        known = {name: present(root, self._annotations(name)) for name in ("train2014", VALIDATION)}
        own = known[VALIDATION] if split == VALIDATION else None
        questions = read_questions(",".join(map(str, filter(None, (path, own)))), str(path))
        if questions.subset != split or questions.by_url:
            raise Damaged(f"{path}: questions of {questions.subset or 'no'} data_subtype, expected {split}")
        numbers = list(dict.fromkeys(questions.table["picture"].to_pylist()))
        subset = split.replace("test-dev", "test")
        named = [f"COCO_{subset}_{int(number):012d}.jpg" for number in numbers]
        if not (folder / named[0]).is_file():
            named = [f"{int(number):012d}.jpg" for number in numbers]  # as COCO calls them since 2017
        answers = [str(file) for file in known.values() if file is not None]
        lacks = [f"no annotations of {name}: candidates are the frequent answers of the rest" for name in known if not known[name]]
        asked = AskedFiles(",".join(map(str, filter(None, (path, own)))), tuple(answers), len(questions))
        notes = (f"{len(questions):,} questions", *lacks)
        return checked(Split(Files(folder, named), ids=tuple(numbers), notes=notes, asked=asked), path)
