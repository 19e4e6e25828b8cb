"""A folder of pictures into shards: captions of every form, hostile files, what is packed again, and the whole chain after it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.build import BuildCommand
from data_pipeline.errors import UserError
from data_pipeline.local import packing
from data_pipeline.local.captions import read_captions, table_rows
from data_pipeline.shards.command import MarkCommand
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.verify import verify
from data_pipeline.world.server import bomb_png
from sycoca_ds.data.loader import ShardReader
from sycoca_ds.data.sources import Sources
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.stats.recalls import retrieve
from tests.worlds import REPOSITORY
from tests.worlds.data.data_sets import parts, write_tar


def picture(seed: int, side: int = 40) -> bytes:
    """A JPEG that is like no other."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((side + seed % 7, side), Image.Resampling.NEAREST).save(out, "JPEG", quality=95)
    return out.getvalue()


def folder_of(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    return root


def build(pictures: Path, out: Path, captions: object = None, **options: object) -> int:
    given = {"shard_size": 10, "processes": 1, "verify_processes": 1} | options
    return BuildCommand(
        source="folder", pictures=pictures, captions=None if captions is None else str(captions), out=out, **given
    ).run()


def samples(out: Path) -> dict[str, list[str]]:
    """{path of the picture: captions}, as training reads them."""
    found: dict[str, list[str]] = {}
    collection = Collection(out, 32)
    for one, captions in zip(collection.pictures, collection.captions_of_image, strict=True):
        found[one.url.removeprefix("folder:").split("#")[0]] = sorted(captions)
    return found


def left_out(out: Path) -> Counter:
    return Counter((entry["file"], entry["reason"]) for entry in map(json.loads, (out / "left_out.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_of_captions(kind: str, tmp_path: Path) -> None:
    """Several captions of a picture are one sample; U+2028 ends no row; quotes may hold line breaks."""
    pictures = folder_of(tmp_path / "photos", ["a.jpg", "in/b c.jpg", "d.jpg"])
    rows = [("a.jpg", "one\u2028scene"), ("a.jpg", 'another, "scene"'), ("in/b c.jpg", "blue  sky"), ("./d.jpg", "d")]
    table = tmp_path / f"captions.{kind}"
    if kind == "csv":
        quoted = "".join('{},"{}"\n'.format(file, text.replace('"', '""')) for file, text in rows)
        table.write_text("file_name,caption\n" + quoted, "utf-8")
    elif kind == "tsv":
        table.write_text("image\ttext\n" + "".join(f"{file}\t{text}\n" for file, text in rows), "utf-8")
    else:
        joined = [{"file": "a.jpg", "captions": [rows[0][1], rows[1][1]]}, *({"file": f, "captions": t} for f, t in rows[2:])]
        table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in joined), "utf-8")
    assert build(pictures, tmp_path / "out", table) == 0
    assert samples(tmp_path / "out") == {"a.jpg": ['another, "scene"', "one scene"], "in/b%20c.jpg": ["blue sky"], "d.jpg": ["d"]}
    assert not left_out(tmp_path / "out")
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert [funnel[name] for name in ("source", "rows_in", "joined", "requested", "kept")] == ["folder", 4, 1, 3, 3]


def test_a_picture_with_its_captions_is_one_sample_and_evaluates_as_one_a_caption_did(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Training takes one caption an epoch, so that no picture is its own negative in a batch; the second folder has, in the same
    order, a sample for each caption, as folders were built before."""
    names = [f"{number}.jpg" for number in range(12)]
    pictures, out, apart = folder_of(tmp_path / "photos", names), tmp_path / "out", tmp_path / "apart"
    rows = [(name, f"caption {place} of picture {name}") for place in range(5) for name in names]
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{file},{text}\n" for file, text in rows))
    assert build(pictures, out, tmp_path / "captions.csv") == 0
    said = capsys.readouterr().err
    assert "12 pictures with 60 captions in 2 tars" in said and "12 pictures have several captions, a line each" in said
    funnel = json.loads((out / "funnel.json").read_text())
    assert [funnel[name] for name in ("rows_in", "joined", "kept")] == [60, 48, 12]
    assert "those of a picture as one" in (page := (out / "funnel.html").read_text()) and "further captions of the same" in page

    sources = Sources.load([out])
    reader, found = ShardReader(sources), {}
    assert sum(manifest.kept for manifest in sources.manifests) == 12
    for shard, kept in enumerate(sources.manifests[0].kept_per_shard):
        for position in range(kept):
            texts = [reader.read(shard, position, epoch)[1] for epoch in range(6)]
            assert texts[5] == texts[0] and len({text.split()[-1] for text in texts}) == 1
            found[texts[0].split()[-1]] = set(texts)
    assert found == {name: {text for file, text in rows if file == name} for name in names}

    for tar in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(tar) as file:
            content = {member.name: file.extractfile(member).read() for member in file}
        singles = []
        for key in [name[:-4] for name in content if name.endswith(".txt")]:
            meta = json.loads(content[f"{key}.json"])
            assert meta.pop("captions") == 5
            for text in content[f"{key}.txt"].decode().split("\n"):
                place = sha256(f"{meta['url'][7:].split('#')[0]}\0{text}".encode()).hexdigest()
                own = json.dumps(meta | {"uid": place[:16]}).encode()
                singles.append((place, {"jpg": content[f"{key}.jpg"], "txt": text.encode(), "json": own}))
        members = [one for number, (_, own) in enumerate(sorted(singles)) for one in parts(f"{number:05d}", **own)]
        write_tar(apart / "shards" / tar.name, members)
    assert verify(apart, 1)["kept"] == 60
    one, many = Collection(out, 32), Collection(apart, 32)
    assert [picture.image_id for picture in one.pictures] == [picture.image_id for picture in many.pictures]
    assert one.captions_of_image == many.captions_of_image and list(map(len, one.captions_of_image)) == [5] * 12
    vectors = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    of = {text: vectors[place] for place, (_, text) in enumerate(rows)}
    images, results = vectors[:12] + torch.randn(12, 16, generator=torch.Generator().manual_seed(1)), []
    for data in (one, many):
        result = retrieve(images, torch.stack([of[text] for text in data.captions]), torch.from_numpy(data.image_of_text_T))
        each = {name: values.tolist() for name, values in result.each(data.image_of_text_T).items()}
        results.append((result.metrics(), result.intervals(data.image_of_text_T), each))
    assert results[0] == results[1] and 0 < results[0][0]["t2i_r5"] < 100


def test_more_captions_than_a_sample_may_have_are_in_further_samples_of_the_picture(tmp_path: Path) -> None:
    """At most 64 lines of together 64 KiB are read as captions."""
    pictures, out = folder_of(tmp_path / "photos", ["a.jpg", "b.jpg"]), tmp_path / "out"
    lists = {"a.jpg": [f"number {number}" for number in range(150)], "b.jpg": [f"{'x' * 3000} {number}" for number in range(30)]}
    lines = [json.dumps({"file": file, "caption": texts}) for file, texts in lists.items()]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    assert build(pictures, out, tmp_path / "captions.jsonl") == 0
    assert samples(out) == {file: sorted(texts) for file, texts in lists.items()}
    texts = Manifest.load(out).index(0, ["url", "captions", "text_bytes"]).to_pylist()
    assert sorted(row["captions"] for row in texts) == [9, 21, 22, 64, 64] and max(row["text_bytes"] for row in texts) < 1 << 16


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_csv_may_be_separated_otherwise(separator: str, tmp_path: Path) -> None:
    """As Excel writes it where numbers have a decimal comma: by what gives the header the columns that are wanted."""
    pictures = folder_of(tmp_path / "photos", ["a.jpg", "b.jpg"])
    rows = [["file", "note, by us", "text"], ["a.jpg", "1,5", f'"one{separator} two,\nthree"'], ["b.jpg", "", "four, five"]]
    (tmp_path / "c.csv").write_text("\ufeff" + "".join(f"{separator.join(row)}\r\n" for row in rows), "utf-8", newline="")
    assert build(pictures, tmp_path / "out", tmp_path / "c.csv") == 0
    said = "one two, three" if separator == "\t" else f"one{separator} two, three"
    assert samples(tmp_path / "out") == {"a.jpg": [said], "b.jpg": ["four, five"]}
    named = list(table_rows(tmp_path / "c.csv", "file", "note, by us"))
    assert named == [("a.jpg", "1,5"), ("b.jpg", "")]
    with pytest.raises(UserError, match=r"no column 'words' \('file', 'note, by us', 'text' there\): name it with --caption-col"):
        list(table_rows(tmp_path / "c.csv", None, "words"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_table_in_another_encoding_is_refused_with_its_line(kind: str, encoding: str, tmp_path: Path) -> None:
    """As U+FFFD its letters would be lost without a word."""
    rows = [("a.jpg", "a dog"), ("b.jpg", "sch\u00f6n")]
    texts = {
        "csv": "file,caption\n" + "".join(f"{file},{said}\n" for file, said in rows),
        "tsv": "file\tcaption\n" + "".join(f"{file}\t{said}\n" for file, said in rows),
        "jsonl": "".join(json.dumps({"file": file, "caption": said}, ensure_ascii=False) + "\n" for file, said in rows),
    }
    (tmp_path / f"c.{kind}").write_bytes(texts[kind].encode(encoding))
    line = 1 if encoding == "utf-16" else 2 if kind == "jsonl" else 3
    with pytest.raises(UserError, match=rf"^--captions {tmp_path}/c.{kind}: line {line} is not UTF-8: save it as that"):
        list(table_rows(tmp_path / f"c.{kind}", None, None))
    (tmp_path / f"c.{kind}").write_text(texts[kind], "utf-8")
    assert list(table_rows(tmp_path / f"c.{kind}", None, None)) == rows


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_text_in_another_encoding_is_refused_with_its_name(encoding: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", ["a.jpg", "b.jpg"])
    said = {"a": "a dog", "b": "sch\u00f6n"}
    for name, text in said.items():
        (folder / f"{name}.txt").write_text(text, "utf-8-sig")
    assert list(read_captions(folder, "texts", None, None)[1]) == [(f"{name}.jpg", text) for name, text in said.items()]
    (folder / "b.txt").write_text("sch\u00f6n", encoding)
    with pytest.raises(UserError, match=rf"^{folder}/b.txt: is not UTF-8: `iconv "):
        list(read_captions(folder, "texts", None, None)[1])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_table_is_called_empty(kind: str, content: str, tmp_path: Path) -> None:
    table = tmp_path / f"c.{kind}"
    table.write_text(content)
    with pytest.raises(UserError, match=rf"^--captions {table}: is empty; expected (a header and rows|an object a line)$"):
        list(table_rows(table, None, None))


def test_texts_beside_pictures_and_folders_as_classes(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "photos", ["red_fox/a.jpg", "red_fox/b.jpg", "grey-wolf/c.jpg", "top.jpg"])
    assert build(pictures, tmp_path / "classes") == 0
    fox, wolf = ["a photo of a red fox"], ["a photo of a grey wolf"]
    assert samples(tmp_path / "classes") == {"red_fox/a.jpg": fox, "red_fox/b.jpg": fox, "grey-wolf/c.jpg": wolf}
    assert left_out(tmp_path / "classes") == {("top.jpg", "no caption"): 1}
    for name, text in {"red_fox/a": "a fox\nthat sleeps", "red_fox/b": "b", "grey-wolf/c": "\ufeffc ", "top": " \u200b"}.items():
        (pictures / f"{name}.txt").write_text(text, "utf-8")
    assert build(pictures, tmp_path / "texts") == 0  # few have several lines: a break is one inside a caption
    assert samples(tmp_path / "texts") == {"red_fox/a.jpg": ["a fox that sleeps"], "red_fox/b.jpg": ["b"], "grey-wolf/c.jpg": ["c"]}
    assert left_out(tmp_path / "texts") == {("top.jpg", "empty caption"): 1}
    (pictures / "red_fox/b.txt").write_text("b\nbb\n")
    assert build(pictures, tmp_path / "lines") == 0
    assert samples(tmp_path / "lines")["red_fox/a.jpg"] == ["a fox", "that sleeps"]
    (pictures / "metadata.csv").write_text("file_name,text\ntop.jpg,of a table\n")
    assert read_captions(pictures, None, None, None)[0] == f"captions of {pictures / 'metadata.csv'}"


def test_hostile_files_are_counted_and_named(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "photos", ["good.jpg", "cut.jpg", "small.jpg", "twice.jpg"])
    (tmp_path / "secret.jpg").write_bytes(picture(50))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.jpg").write_bytes(picture(51))
    (pictures / "cut.jpg").write_bytes(picture(1)[:-300])
    (pictures / "small.jpg").write_bytes(picture(2, side=4))
    (pictures / "bomb.png").write_bytes(bomb_png())
    (pictures / "text.jpg").write_text("<html>")
    (pictures / "empty.jpg").touch()
    (pictures / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (pictures / "linked").symlink_to(tmp_path / "elsewhere")
    (pictures / "inside.jpg").symlink_to("good.jpg")
    (pictures / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(pictures / "pipe.jpg")
    rows = {
        "good.jpg": "a",
        "cut.jpg": "b",
        "small.jpg": "c",
        "bomb.png": "d",
        "text.jpg": "e",
        "empty.jpg": "f",
        "out.jpg": "g",
        "linked/x.jpg": "h",
        "inside.jpg": "i",
        "gone.jpg": "j",
        "pipe.jpg": "k",
        "../secret.jpg": "l",
        str(tmp_path / "secret.jpg"): "m",
        str(pictures / "twice.jpg"): "n",
        "nul\0.jpg": "o",
        "long.jpg": "x" * 100,
    }
    lines = [json.dumps({"file": file, "caption": caption}) for file, caption in rows.items()]
    lines += ['{"file": "twice.jpg", "caption": " n "}', '{"file": "good.jpg", "caption": ""}', '{"file": "good.jpg"}', "no json"]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    assert build(pictures, tmp_path / "out", tmp_path / "captions.jsonl") == 0
    assert samples(tmp_path / "out").keys() == {"good.jpg", "inside.jpg", "twice.jpg"}
    assert left_out(tmp_path / "out") == {
        ("cut.jpg", "truncated image"): 1,
        ("small.jpg", "image too small"): 1,
        ("bomb.png", "too many pixels"): 1,
        ("text.jpg", "not an image"): 1,
        ("empty.jpg", "empty file"): 1,
        ("out.jpg", "leads out of the folder"): 1,
        ("linked/x.jpg", "leads out of the folder"): 1,
        ("gone.jpg", "no such file"): 1,
        ("pipe.jpg", "no file"): 1,
        ("../secret.jpg", "leads out of the folder"): 1,
        (str(tmp_path / "secret.jpg"), "leads out of the folder"): 1,
        ("nul\0.jpg", "no such file"): 1,
        ("long.jpg", "no such file"): 1,
        ("twice.jpg", "duplicate row"): 1,
        ("good.jpg", "empty caption"): 1,
        ("good.jpg", "no caption"): 1,
        ("line 20", "no such file"): 1,
    }
    funnel = json.loads((tmp_path / "out/funnel.json").read_text())
    assert funnel["rows_in"] == len(lines) == sum(funnel["dropped"].values()) + sum(funnel["failed"].values()) + funnel["kept"]


def test_a_picture_that_is_left_out_is_named_once_whatever_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures, out = folder_of(tmp_path / "photos", ["good.jpg", "cut.jpg", "half.jpg"]), tmp_path / "out"
    for name, seed in (("cut.jpg", 1), ("half.jpg", 2)):
        (pictures / name).write_bytes(picture(seed)[:-300])
    rows = [(name, f"caption {place}") for name in ("good.jpg", "cut.jpg", "half.jpg", "gone.jpg") for place in range(5)]
    rows += [("good.jpg", "caption 0")] * 2 + [("good.jpg", "")]
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{file},{text}\n" for file, text in rows))
    assert build(pictures, out, tmp_path / "captions.csv") == 0
    told = [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines() if " left out" in line]
    assert told[:4] == [
        "2 pictures, 10 captions left out, truncated image: 'cut.jpg', 'half.jpg'",
        "1 picture, 5 captions left out, no such file: 'gone.jpg'",
        "2 captions of 1 picture left out, duplicate row: 'good.jpg'",
        "1 caption of 1 picture left out, empty caption: 'good.jpg'",
    ]
    listed = list(map(json.loads, (out / "left_out.jsonl").read_text().splitlines()))
    assert sorted((entry["file"], entry["reason"], entry["rows"]) for entry in listed) == [
        ("cut.jpg", "truncated image", 5),
        ("gone.jpg", "no such file", 5),
        ("good.jpg", "duplicate row", 2),
        ("good.jpg", "empty caption", 1),
        ("half.jpg", "truncated image", 5),
    ]
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["dropped"] == {"no such file": 1, "duplicate row": 1, "empty caption": 1}
    assert [funnel[name] for name in ("rows_in", "joined", "failed", "kept")] == [23, 17, {"truncated image": 2}, 1]


def test_only_what_changed_is_packed_again_and_a_killed_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}.jpg" for number in range(40)]
    pictures = folder_of(tmp_path / "photos", names)
    table = tmp_path / "captions.csv"

    def write(rows: dict[str, str]) -> None:
        table.write_text("file,caption\n" + "".join(f"{file},{caption}\n" for file, caption in rows.items()))

    rows = {name: f"picture {name}" for name in names}
    write(rows)
    packed: list[str] = []
    real = packing.pack_shard

    def noted(*given):
        if len(packed) == stop_at:
            raise KeyboardInterrupt
        packed.append(given[2])
        return real(*given)

    monkeypatch.setattr(packing, "pack_shard", noted)
    stop_at = 2
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(pictures, out, table)
    assert packed == ["00000", "00001"] and not (out / "manifest").exists()
    (out / "shards/.00002.tar.1.tmp").write_bytes(b"left by a kill")
    stop_at = -1
    assert build(pictures, out, table) == 0 and packed == ["00000", "00001", "00002", "00003"]
    first = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    assert sorted(first) == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    assert build(pictures, tmp_path / "again", table) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again/shards").iterdir()} == first, "not the same twice"

    packed.clear()
    assert build(pictures, out, table) == 0 and packed == []
    assert MarkCommand(data=(out,)).run() in (0, None)
    (pictures / "3.jpg").write_bytes(picture(99))
    write(rows | {"4.jpg": "another text"})
    assert build(pictures, out, table) == 0
    touched = {f"{int(packing.sha256_text(name)[:12], 16) % 4:05d}" for name in ("3.jpg", "4.jpg")}
    assert set(packed) == touched and samples(out)["4.jpg"] == ["another text"] and len(samples(out)) == 40

    gone = [name for name in names if int(packing.sha256_text(name)[:12], 16) % 4 == 2]
    write({name: caption for name, caption in rows.items() if name not in gone})
    assert build(pictures, out, table) == 0 and len(Manifest.load(out).shards) == 3 and len(samples(out)) == 40 - len(gone)

    with pytest.raises(UserError, match=r"was made with --image-size 288 \(now 100\); give the same as then"):
        build(pictures, out, table, image_size=100)


def test_several_processes_pack_the_same(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "photos", [f"class/{number}.jpg" for number in range(24)])
    for name, processes in (("one", 1), ("two", 2)):
        assert build(pictures, tmp_path / name, processes=processes) == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name / "shards").iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 3


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    pictures, out = folder_of(tmp_path / "photos", ["a.jpg"]), tmp_path / "out"
    (tmp_path / "wrong.csv").write_text("name,words\na.jpg,x\n")
    (tmp_path / "none.csv").write_text("file,caption\nb.jpg,x\n")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for words, said in (
        ({"pictures": tmp_path / "no"}, "--pictures .*no: no such folder"),
        ({"pictures": None}, "expected --pictures FOLDER"),
        ({"captions": "c.csv"}, "--captions c.csv: no such file"),
        ({"captions": "c.xlsx"}, "expected a file that ends with .csv, .tsv, .jsonl, .ndjson, or `texts`, or `folders`"),
        ({"captions": str(tmp_path / "wrong.csv")}, "no column one of file, .* name it with --url-col"),
        ({"captions": str(tmp_path / "none.csv")}, r"no picture with a caption \(1 no such file; .*\): give --captions TABLE"),
        (
            {},
            r"no picture with a caption \(1 no caption; captions are names of folders, .*\): give --captions TABLE",
        ),
        ({"retries": 3}, "--retries: without effect with --source folder"),
        ({"url_col": "x"}, "--url-col: names a column, and captions here are no table"),
        ({"out": pictures}, "is the folder of the pictures"),
        ({"out": tmp_path / "run"}, r"run: holds a training \(run_status.json, checkpoints/\); choose another folder"),
        ({"source": "generic", "metadata": "x.csv"}, "--pictures, --captions and --captions-split go with --source folder"),
        ({"source": "generic", "pictures": None}, "--metadata: expected a catalogue"),
    ):
        with pytest.raises(UserError, match=said):
            BuildCommand(**{"source": "folder", "pictures": pictures, "out": out, "processes": 1} | words).run()
    assert not out.exists(), "what is refused leaves nothing"
    assert build(pictures, out, tmp_path / "wrong.csv", url_col="name", caption_col="words") == 0


def test_the_command_as_it_is_typed(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "photos", ["a.jpg", "b.jpg"])
    (tmp_path / "captions.csv").write_text("file,caption\na.jpg,one\nb.jpg,two\n")
    words = ["-m", "data_pipeline", "build", "--source", "folder", "--pictures", str(pictures)]
    words += ["--captions", str(tmp_path / "captions.csv"), "--out", str(tmp_path / "out"), "--processes", "1"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "2 of 2 samples kept" in done.stderr, done.stderr
    assert "a.jpg" in samples(tmp_path / "out")
