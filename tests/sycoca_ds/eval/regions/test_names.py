"""Names of categories as words of captions."""

from __future__ import annotations

import pytest

from sycoca_ds.eval.regions.names import Names, plural

COCO = [
    "person",
    "dog",
    "hot dog",
    "cat",
    "bus",
    "wine glass",
    "knife",
    "teddy bear",
    "bear",
    "dining table",
    "couch",
    "mouse",
    "skis",
]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A dog.", {"dog": ["dog"]}),
        ("DOGS, cats and a busy street", {"dog": ["DOGS"], "cat": ["cats"]}),
        ("two buses and a hotdog stand", {"bus": ["buses"]}),
        ("hot-dogs for my dog", {"hot dog": ["hot-dogs"], "dog": ["dog"]}),
        ("a teddy  bear beside bears", {"teddy bear": ["teddy  bear"], "bear": ["bears"]}),
        ("wine glasses, knives and mice", {"wine glass": ["wine glasses"], "knife": ["knives"], "mouse": ["mice"]}),
        (
            "a woman with her children on a sofa at the table",
            {"person": ["woman", "children"], "couch": ["sofa"], "dining table": ["table"]},
        ),
        ("skis, a catalogue and personnel", {"skis": ["skis"]}),
        ("", {}),
    ],
)
def test_categories_are_found_as_words(caption: str, found: dict[str, list[str]]) -> None:
    spans = Names(COCO, {}).find(caption)
    assert {name: [caption[start:end] for start, end in where] for name, where in spans.items()} == found


def test_a_categorys_own_name_is_no_other_categorys_word() -> None:
    names = Names(["couch", "sofa", "table", "dining table"], {"table": ["sofa"]})
    assert set(names.find("a sofa, a couch, tables")) == {"sofa", "couch", "table"}
    assert Names([], {}).find("anything") == {}


@pytest.mark.parametrize(
    ("one", "many"), [("cat", "cats"), ("bench", "benches"), ("berry", "berries"), ("toy", "toys"), ("wine glass", "wine glasses")]
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many
