"""Single cases on the page: the right pictures, in the right order, with what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sycoca_ds.eval.report.examples import caption_groups, class_tables, question_gallery
from sycoca_ds.eval.report.galleries import data_uri, retrieval_groups
from sycoca_ds.eval.stats.paired import each_file


def picture(number: int) -> np.ndarray:
    return np.full((4, 4, 3), number, np.uint8)


class Pictures(SimpleNamespace):
    picture = staticmethod(picture)

    def __len__(self) -> int:
        return len(self.pictures)


def done(task: str, **details: Any) -> dict[str, Any]:
    return {"tasks": {task: {"status": "done", "details": details}}}


def test_captions_are_shown_by_distance_and_by_their_own_cider(tmp_path: Path) -> None:
    cider_I = np.array([0.5, 9.0, 0.0, 3.0, 0.0, 1.0, 8.0, 0.25, 2.0, 7.0, 4.0, 6.0, 5.0, 0.75, 0.1, 0.2])
    references = [[f"reference {n} {k}" for k in range(7)] for n in range(16)]
    data = Pictures(pictures=[SimpleNamespace(image_id=f"i{n}") for n in range(16)], captions_of_image=references)
    for path in (tmp_path / "samples", each_file(tmp_path, "captioning").parent):
        path.mkdir()
    written = [{"image_id": f"i{n}", "caption": "Reference 1 6!" if n == 1 else f"written {n}"} for n in range(16)]
    (tmp_path / "samples/captions.json").write_text(json.dumps(written))
    np.savez(each_file(tmp_path, "captioning"), image_id=np.array([f"i{n}" for n in range(16)]), cider=cider_I)
    ordinary, best, worst = caption_groups(done("captioning"), data, tmp_path)
    assert [item["picture"] for item in best["items"]] == [data_uri(picture(n)) for n in (1, 6, 9, 11, 12, 10)]
    assert [item["cider"] for item in worst["items"]] == ["0.000", "0.000", "0.100", "0.200", "0.250", "0.500"]
    assert [item["generated"] for item in worst["items"][:2]] == ["written 2", "written 4"], "of equal ones the first"
    assert best["items"][0]["references"] == references[1][:5] and best["items"][0]["same"] and not worst["items"][0]["same"]
    assert len(ordinary["items"]) == 12 and ordinary["items"][0]["references"] == references[0][:1]
    assert "nothing is picked" in ordinary["note"] and "6 images" in best["note"] and worst["title"] == "Worst ones"
    assert caption_groups({"tasks": {}}, data, tmp_path) == []


def test_questions_stand_with_their_picture_and_what_annotators_said() -> None:
    examples = [
        {"picture": 3, "question": "how many?", "said": "2", "answers": {"2": 9, "3": 1}, "accuracy": 1.0},
        {"picture": 5, "question": "red?", "said": "no", "answers": {"yes": 10}, "accuracy": 0.0},
        {"picture": 5, "question": "what?", "said": "cat", "answers": {"dog": 8, "cat": 2}, "accuracy": 0.6},
    ]
    found = question_gallery(done("vqa", examples=examples), Pictures(pictures=[]))
    assert [(item["picture"], item["verdict"]) for item in found] == [
        (data_uri(picture(3)), "right"),
        (data_uri(picture(5)), "wrong"),
        (data_uri(picture(5)), "partly right"),
    ]
    assert found[0]["answers"] == ["2 (9)", "3"] and found[2]["accuracy"] == "60.0 %"


def test_of_many_classes_the_worst_and_the_best() -> None:
    rows = [{"class": f"c{k}", "images": 10 + k, "right": float(97 * k % 101) if k < 60 else None} for k in range(64)]
    (table,) = class_tables(done("classification", each_class=rows))
    (first, worst), (second, best) = table["parts"]
    order = sorted(range(60), key=lambda k: 97 * k % 101)
    assert (first, second, len(worst), len(best), table["classes"], table["without"]) == ("worst", "best", 20, 5, 60, 4)
    assert [name for name, _, _ in worst] == [f"c{k}" for k in order[:20]] and worst[0] == ("c0", "0.0 %", ["10"])
    assert [name for name, _, _ in best] == [f"c{k}" for k in order[-5:]]
    few = [{"class": "a", "train": 3, "test": 2000, "right": 50.0}, {"class": "b", "train": 3, "test": 2, "right": 12.5}]
    (table,) = class_tables(done("linear_probe", each_class=few))
    assert table["parts"] == [("", [("b", "12.5 %", ["2", "3"]), ("a", "50.0 %", ["2,000", "3"])])]
    assert class_tables(done("alignment", per_class=[{"class": "sky", "iou": None, "pixels": 0}])) == []


def test_retrievals_show_the_right_image_where_it_was_not_found() -> None:
    found = {"caption": "a", "own": 2, "rank": 1, "images": [2, 1]}
    lost = {"caption": "b", "own": 7, "rank": 1234, "images": [2, 1]}
    ordinary, best, worst = retrieval_groups(done("retrieval", examples=[found], best=[found], worst=[lost]), Pictures(pictures=[]))
    assert [group["title"] for group in (ordinary, best, worst)] == ["Ordinary ones", "Best ones", "Worst ones"]
    (row,) = worst["rows"]
    assert row["own"] == data_uri(picture(7)) and row["rank"] == "1,234" and not any(image["hit"] for image in row["images"])
    assert best["rows"][0]["own"] is None and [image["hit"] for image in best["rows"][0]["images"]] == [True, False]
