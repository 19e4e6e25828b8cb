"""WebDatasets: what the library webdataset reads from the same tars, as CLIP_benchmark calls it, and what strangers put in."""

import dataclasses
import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipeline.pictures import FetchError
from sycoca_ds.eval.datasets.reading import Damaged, Unused
from sycoca_ds.eval.exports import tars
from sycoca_ds.eval.exports.tars import Tars, flat_integers
from tests.worlds.data.data_sets import member, parts, write_tar
from tests.worlds.published.exported import Shown, npy, scenes, write_wds

CLASSES, TEMPLATES = ("cat", "hot dog", "cat_bird"), ("a photo of a {c}.", "{c}")


def coded(number: int, kind: str) -> bytes:
    """A picture of random pixels; all but JPEG are lossless."""
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def of_kinds(count: int = 12) -> list[Shown]:
    kinds = (("webp", "WEBP"), ("png", "PNG"), ("jpg", "JPEG"), ("jpeg", "JPEG"))
    return [
        Shown(coded(number, kinds[number % 4][1]), number * 7 % 3, (f"one {number}", "two"), extension=kinds[number % 4][0])
        for number in range(count)
    ]


def by_library(folder, label: str):
    """(pixels, label) as build_wds_dataset of clip_benchmark/datasets/builder.py takes them."""
    import webdataset

    shards = int((folder / "test/nshards.txt").read_text())
    pattern = f"{folder}/test/{{0..{shards - 1}}}.tar"
    dataset = webdataset.WebDataset(pattern, shardshuffle=False, nodesplitter=lambda source: source)
    images = webdataset.autodecode.ImageHandler("pil", extensions=["webp", "png", "jpg", "jpeg"])
    return [(np.asarray(image), said) for image, said in dataset.decode(images).to_tuple(["webp", "png", "jpg", "jpeg"], label)]


def assert_same_pictures(read, expected):
    assert len(read) == len(expected)
    for number, (pixels, _) in enumerate(expected):
        own = read.pictures.pixels(number)
        assert own.shape == pixels.shape and np.abs(own.astype(int) - pixels).max() <= 2, "decoders of JPEG round differently"


def test_a_set_of_classes_is_what_the_library_reads(tmp_path):
    folder = write_wds(tmp_path / "wds_a", of_kinds(), CLASSES, TEMPLATES, per_shard=5)
    read, expected = Tars().read(folder, "test"), by_library(folder, "cls")
    assert_same_pictures(read, expected)
    assert read.label_N.tolist() == [label for _, label in expected] == [number * 7 % 3 for number in range(12)]
    assert read.classes == CLASSES and read.templates == TEMPLATES and read.named_by == "classnames.txt" and not read.nameless
    assert read.pictures.names[:2] == ["test/0.tar/s0000000", "test/0.tar/s0000001"]
    assert read.pictures.names[5] == "test/1.tar/s0000005"
    lossless = [number for number in range(12) if number % 4 < 2]
    assert all((read.pictures.pixels(number) == expected[number][0]).all() for number in lossless)


def test_captions_end_where_the_readers_of_clip_benchmark_end_them(tmp_path):
    """Its webdataset_builder.py joins captions by line feeds and leaves other ends of lines within them; build_wds_dataset of its
    datasets/builder.py (1.6.2) gives each text to str.splitlines, which cuts at those, too."""
    samples = [dataclasses.replace(each, captions=("one\u2028two", "three\x85four", "five\x0bsix")) for each in of_kinds()[:2]]
    folder = write_wds(tmp_path / "wds_a", samples, kind="retrieval")
    assert Tars().read(folder, "test").captions == (("one", "two", "three", "four", "five", "six"),) * 2


def test_a_set_of_captions_is_what_the_library_reads(tmp_path):
    folder = write_wds(tmp_path / "wds_a", of_kinds(), kind="retrieval", per_shard=7)
    read, expected = Tars().read(folder, "test"), by_library(folder, "txt")
    assert_same_pictures(read, expected)
    assert read.captions == tuple(tuple(said.splitlines()) for _, said in expected) and read.label_N is None and not read.notes


def test_groups_come_from_npy(tmp_path):
    samples = [Shown(sample.picture, sample.label, (), (number % 2, 9, 1)) for number, sample in enumerate(scenes(6))]
    folder = write_wds(tmp_path / "wds_a", samples, [str(number) for number in range(24)])
    assert Tars(0).read(folder, "test").group_N == ("group 0", "group 1") * 3
    assert Tars(1).read(folder, "test").group_N == ("group 9",) * 6 and Tars().read(folder, "test").group_N is None
    with pytest.raises(Damaged, match="s0000000: .npy without an integer at place 5"):
        Tars(5).read(folder, "test")


def tar_set(folder, members, count="1\n", classes="cat\ndog\n"):
    (folder / "test").mkdir(parents=True)
    (folder / "test/nshards.txt").write_text(count)
    (folder / "classnames.txt").write_text(classes)
    write_tar(folder / "test/0.tar", members)
    return folder


PICTURE = coded(1, "PNG")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (parts("a", png=PICTURE), r"0.tar, sample a: no .cls; sets of captions have dataset_type.txt"),
        (parts("a", cls=b"1"), r"sample a: no picture \(.webp, .png, .jpg, .jpeg\), only .cls"),
        (parts("a", png=PICTURE, cls=b"-1"), r"class b'-1', expected a number from 0 on"),
        (parts("a", png=PICTURE, cls=b"1.0"), "expected a number"),
        (parts("a", png=PICTURE, cls=b"9" * 12), "expected a number"),
        (parts("a", png=PICTURE, cls=b"0" * 70_000), ".cls of 70,000 bytes, expected at most 65,536"),
        (parts("a", png=PICTURE, cls=b"2"), "0.tar/a has class 2, expected 0 to 1"),
        ([member("../../a.png", PICTURE)], "not a path inside a folder"),
        (
            [member("a.png", b"", type=b"2", linkname="/etc/passwd"), *parts("a", cls=b"1")],
            "sample a: a link in place of .png",
        ),
        ([], "holds no samples"),
    ],
)
def test_damaged_sets_say_what_is_wrong(tmp_path, members, message):
    with pytest.raises(Damaged, match=message):
        Tars().read(tar_set(tmp_path / "a", members), "test")


@pytest.mark.parametrize("count", ["", "x", "-1", "0", "1e3", "9" * 30, "<!DOCTYPE html>"])
def test_a_count_that_is_none(tmp_path, count):
    with pytest.raises(Damaged, match="nshards.txt: .* expected how many tars there are"):
        Tars().read(tar_set(tmp_path / "a", parts("a", png=PICTURE, cls=b"1"), count), "test")


def test_tars_that_are_not_there_and_a_tar_that_is_cut_off(tmp_path):
    folder = write_wds(tmp_path / "a", of_kinds(), CLASSES, TEMPLATES, per_shard=5)
    data = (folder / "test/1.tar").read_bytes()
    (folder / "test/1.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(Damaged, match="1.tar cut off"):
        Tars().read(folder, "test")
    (folder / "test/1.tar").unlink()
    with pytest.raises(Damaged, match="announces 3 tars, of which 1 are not there, the first 1.tar"):
        Tars().read(folder, "test")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_run(tmp_path):
    """Which the library's decoder does with .pyd, .pickle and objects in .npy."""
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    objects = npy([Trap(tmp_path / "sprung")], dtype=object)
    folder = tar_set(tmp_path / "a", parts("a", png=PICTURE, cls=b"1", pyd=trap, pickle=trap, pth=trap, npy=objects))
    assert Tars().read(folder, "test").label_N.tolist() == [1]
    with pytest.raises(Damaged, match="without an integer at place 0"):
        Tars(0).read(folder, "test")
    for kind in ("cls", "png"):
        (tmp_path / kind).mkdir()
        other = tar_set(tmp_path / kind / "a", parts("a", **{"png": PICTURE, "cls": b"1"} | {kind: trap}))
        try:
            Tars().read(other, "test").pictures.pixels(0)
        except (Damaged, FetchError):
            pass
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists(), "the trap does spring"


def test_numbers_in_npy():
    for values in ([3, 1], [[3, 1]], [3.0, 1.0], [True, False]):
        assert flat_integers(npy(values)).tolist() == np.array(values).ravel().tolist()
    huge = npy([1, 2]).replace(b"(2,)", b"(9999999999,)".ljust(4))
    for data in (b"", b"\x93NUMPY", npy(["a"]), npy([1, 2])[:-1], huge, b"\x93NUMPY\x01\x00\xff\xff{"):
        with pytest.raises((ValueError, EOFError)):
            flat_integers(data)


def test_what_is_larger_than_any_picture_is_not_read(tmp_path, monkeypatch):
    read = Tars().read(tar_set(tmp_path / "a", parts("a", png=PICTURE, cls=b"1")), "test")
    assert read.pictures.pixels(0).shape == (21, 24, 3)
    monkeypatch.setattr(tars, "MOST_PICTURE", len(PICTURE) - 1)
    with pytest.raises(FetchError, match="needs too much memory"):
        read.pictures.pixels(0)
    with pytest.raises(Damaged, match="class 999,999,999 and no names"):
        folder = tar_set(tmp_path / "b", parts("a", png=PICTURE, cls=b"999999999"), classes="")
        Tars().read(folder, "test")


def test_names_and_templates(tmp_path):
    folder = tar_set(tmp_path / "a", parts("a", png=PICTURE, cls=b"1"), classes="\n")
    read = Tars().read(folder, "test")
    assert read.classes == read.keys == ("0", "1") and "has no classnames.txt" in read.nameless and read.templates == ()
    (folder / "classnames.txt").write_text(" cat \n\ndog\n")
    with pytest.raises(Damaged, match="classnames.txt: line 2 is empty"):
        Tars().read(folder, "test")
    (folder / "classnames.txt").write_text(" cat \ndog\n\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n\na photo\n")
    with pytest.raises(Damaged, match="'a photo' lacks {c}"):
        Tars().read(folder, "test")


def test_sets_that_ask_for_several_answers_are_named(tmp_path):
    folder = tar_set(tmp_path / "a", parts("a", png=PICTURE, npy=npy([1, 0])))
    (folder / "dataset_type.txt").write_text("multilabel\n")
    with pytest.raises(Unused, match="several classes a picture"):
        Tars().read(folder, "test")
    (folder / "dataset_type.txt").write_text("other\n")
    with pytest.raises(Damaged, match="'other', expected classification, retrieval or multilabel"):
        Tars().read(folder, "test")
    (folder / "dataset_type.txt").unlink()
    (folder / "classnames.txt").write_text("race:Black\nrace:White\ngender:male\nage:20\ntoxic:animal\n")
    with pytest.raises(Unused, match="four questions a picture"):
        Tars().read(folder, "test")


def test_blank_captions_are_told(tmp_path):
    folder = tar_set(tmp_path / "a", parts("a", png=PICTURE, txt=b"one\n\n  two \n"))
    (folder / "dataset_type.txt").write_text("retrieval")
    read = Tars().read(folder, "test")
    assert read.captions == (("one", "two"),) and read.notes == ("1 blank lines among its captions are left out",)
