"""Flickr30K Entities: a small example written by hand from its description."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.regions.annotated import OtherCaption
from sycoca_ds.eval.regions.flickr import Flickr, parse_sentence
from sycoca_ds.eval.regions.reading import open_layout
from tests.worlds.data.one_picture import one_picture

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#3/bodyparts/people hands] in [/EN#4/scene the yard] .
[/EN#1/people Two men] are near [/EN#5/other a sign] , [/EN#1/people the taller one] reading [/EN#0/notvisual it] .
A man 's [/EN#5/other sign]
"""
ANNOTATION = """\
<annotation>
  <filename>1000092795.jpg</filename>
  <size><width>20</width><height>10</height><depth>3</depth></size>
  <object><name>1</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>10</ymax></bndbox></object>
  <object><name>1</name><bndbox><xmin>6</xmin><ymin>1</ymin><xmax>9</xmax><ymax>10</ymax></bndbox></object>
  <object><name>2</name><name>3</name><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox></object>
  <object><name>5</name><bndbox><xmin>15</xmin><ymin>3</ymin><xmax>20</xmax><ymax>8</ymax></bndbox></object>
  <object><name>4</name><scene>1</scene><nobndbox>0</nobndbox></object>
  <object><name>6</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>
"""


@pytest.fixture
def flickr(tmp_path: Path) -> Flickr:
    for folder, name, text in (("Sentences", "txt", SENTENCES), ("Annotations", "xml", ANNOTATION)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"1000092795.{name}").write_text(text)
    layout = open_layout(tmp_path)
    assert isinstance(layout, Flickr)
    return layout


def test_flickr_sentences_are_plain_captions_with_phrases() -> None:
    plain, phrases = parse_sentence(SENTENCES.splitlines()[1])
    assert plain == "Two men are near a sign , the taller one reading it ."
    assert [(plain[start:end], chain) for (start, end), chain in phrases] == [
        ("Two men", "1"),
        ("a sign", "5"),
        ("the taller one", "1"),
        ("it", "0"),
    ]
    assert parse_sentence("nothing here") == ("nothing here", [])


def test_flickr_names_what_this_caption_mentions(flickr: Flickr) -> None:
    found = flickr.find(one_picture("http://x.example/a/1000092795.jpg"))
    assert found == flickr.find(one_picture("wds:00000/1000092795")) == flickr.find(one_picture("http://x/1.jpg", "1000092795"))
    annotated = flickr.load(found, "Two men are near a sign, the taller one reading it.")
    assert {thing.name: thing.named for thing in annotated.things} == {"1": True, "2": False, "3": False, "5": True}
    men = annotated.things[0].mask_HW
    assert men.shape == (10, 20) and men.sum() == 80 and men[:, :4].all() and men[:, 5:9].all(), "both ends of a box are in it"
    assert annotated.things[3].mask_HW[2:8, 14:20].all() and annotated.things[3].mask_HW.sum() == 36
    said = [[annotated.sentence[start:end] for start, end in phrase.spans] for phrase in annotated.phrases]
    assert said == [["Two men"], ["a sign"], ["the taller one"]]
    assert [[annotated.things[n].name for n in phrase.things] for phrase in annotated.phrases] == [["1"], ["5"], ["1"]]
    assert not annotated.background_named and annotated.background_HW.sum() == 200 - 80 - 36
    outside = flickr.load(found, "two young guys with shaggy hair look at hands in the yard")
    assert outside.background_named, "a chain that is the whole scene"
    assert {thing.name for thing in outside.things if thing.named} == {"1", "2", "3"}
    assert flickr.load(found, "A man's sign").sentence == "A man 's sign"
    with pytest.raises(OtherCaption):
        flickr.load(found, "Two women")


def test_flickr_damage_is_named(flickr: Flickr) -> None:
    path = flickr.folder / "Annotations" / "1000092795.xml"
    for text in ("<annotation>", "<annotation/>", ANNOTATION.replace("<xmin>15</xmin>", "")):
        path.write_text(text)
        with pytest.raises(UserError, match=r"1000092795.xml: not as Flickr30K Entities publishes it"):
            flickr.load("1000092795", "A man's sign")
