"""The catalogues' layouts, parquet and text: every row and every value as it is in the file."""

import csv
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.catalogue.curate import CurateOptions, curate, read_columns
from data_pipeline.catalogue.engines import DuckDB
from data_pipeline.catalogue.sources import SCHEMAS, find_files, select_sql
from data_pipeline.errors import UserError


def parquet(path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def read(tmp_path, source: str, pattern: str, **given) -> list[dict]:
    """Rows of a catalogue in canonical columns, raw."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    options = CurateOptions(metadata=pattern, out=tmp_path, source=source, **given)
    files, chosen = read_columns(find_files(pattern), scratch, options)
    engine = DuckDB(scratch, "1GB")
    try:
        engine.open(files, chosen)
        engine.save("rows", select_sql(source, "catalogue", chosen))
        return engine.connection.sql("SELECT * FROM rows ORDER BY rowid").to_arrow_table().to_pylist()
    finally:
        engine.close()
        shutil.rmtree(scratch)


def test_cc3m_and_cc12m_without_header_with_quotes(tmp_path):
    captions = [
        '"starts with a quote',
        'a "quoted" word',
        "02000",
        "it's",
        'ends with "',
        "comma, semicolon; done",
        "5' 10\"",
    ]
    with open(tmp_path / "cc3m.tsv", "w") as three, open(tmp_path / "cc12m.tsv", "w") as twelve:
        for number, caption in enumerate(captions):
            three.write(f"{caption}\thttp://a.example/{number}.jpg\n")
            twelve.write(f"http://a.example/{number}.jpg\t{caption}\n")
    for source in ("cc3m", "cc12m"):
        rows = read(tmp_path, source, str(tmp_path / f"{source}.tsv"))
        assert [row["caption"] for row in rows] == captions
        assert [row["url"] for row in rows] == [f"http://a.example/{number}.jpg" for number in range(len(captions))]
        assert all(row["similarity"] is None for row in rows)


LAYOUTS = {
    "laion2b": (
        {
            "SAMPLE_ID": 1,
            "URL": "u",
            "TEXT": "t",
            "HEIGHT": 3,
            "WIDTH": 4,
            "LICENSE": "?",
            "NSFW": "UNSURE",
            "similarity": 0.5,
        },
        {"src_width": 4, "src_height": 3, "similarity": 0.5, "nsfw": 0.5},
    ),
    "laion2b-joined": (
        {
            "URL": "u",
            "TEXT": "t",
            "WIDTH": 4,
            "HEIGHT": 3,
            "similarity": 0.5,
            "hash": 7,
            "punsafe": 0.25,
            "pwatermark": 0.75,
        },
        {"src_width": 4, "src_height": 3, "similarity": 0.5, "nsfw": 0.25, "watermark": 0.75},
    ),
    "relaion2b": (
        {
            "url": "u",
            "caption": "t",
            "width": 4,
            "height": 3,
            "similarity": 0.5,
            "punsafe": 0.25,
            "pwatermark": 0.75,
            "key": "1",
            "status": "success",
        },
        {"src_width": 4, "src_height": 3, "similarity": 0.5, "nsfw": 0.25, "watermark": 0.75},
    ),
    "coyo700m": (
        {
            "id": 1,
            "url": "u",
            "text": "t",
            "width": 4,
            "height": 3,
            "image_phash": "00ff00ff00ff00ff",
            "text_length": 1,
            "word_count": 1,
            "num_tokens_bert": 1,
            "num_tokens_gpt": 1,
            "num_faces": 0,
            "clip_similarity_vitb32": 0.5,
            "clip_similarity_vitl14": 0.125,
            "nsfw_score_opennsfw2": 0.25,
            "nsfw_score_gantman": 0.75,
            "watermark_score": 0.75,
            "aesthetic_score_laion_v2": 5.5,
        },
        {
            "src_width": 4,
            "src_height": 3,
            "similarity": 0.5,
            "nsfw": 0.25,
            "watermark": 0.75,
            "aesthetic": 5.5,
            "phash": "00ff00ff00ff00ff",
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_catalogue_layouts(tmp_path, layout):
    row, expected = LAYOUTS[layout]
    name = "part-00000-5114fd87-297e-42b0-9d11-50f1df323dfa-c000.snappy.parquet"
    path = parquet(tmp_path / name, [row])
    (tmp_path / f".{name}.crc").write_bytes(b"crc")
    (tmp_path / f"{name}.crc").write_bytes(b"crc")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    names = ("src_width", "src_height", "similarity", "nsfw", "watermark", "aesthetic", "phash")
    found = read(tmp_path, layout.split("-")[0], str(tmp_path))[0]
    assert found == {"url": "u", "caption": "t"} | dict.fromkeys(names) | expected
    assert path


def test_rows_of_a_tsv_end_at_line_feeds_and_lose_nothing(tmp_path):
    """What DuckDB's reader does with this file: drops "x" after the carriage return without a word, and stops at the wrong byte."""
    lines = [
        b"\xef\xbb\xbfhttp://a.example/0\tfirst",
        b"http://a.example/1\twindows\r",
        b"http://a.example/2\ttwo\rx",
        b"http://a.example/3",
        b"http://a.example/4\tfour\textra",
        b"",
        b'http://a.example/6\t"six',
        b"http://a.example/7\tb\\ack",
        b"http://a.example/8\tnul\x00here",
        b"http://a.example/9\tb\xffd",
        b"http://a.example/10\tline\xe2\x80\xa8separator",
        b"http://a.example/11\tlast",
    ]
    (tmp_path / "cc12m.tsv").write_bytes(b"\n".join(lines))
    rows = read(tmp_path, "cc12m", str(tmp_path / "cc12m.tsv"))
    captions = [
        "first",
        "windows",
        "two\rx",
        None,
        "four extra",
        '"six',
        "b\\ack",
        "nul\0here",
        "b\ufffdd",
        "line\u2028separator",
        "last",
    ]
    assert [row["caption"] for row in rows] == captions
    numbers = (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)
    assert [row["url"] for row in rows] == [f"http://a.example/{number}" for number in numbers]


def test_a_tab_in_a_caption_is_kept(tmp_path):
    (tmp_path / "cc12m.tsv").write_text("http://a.example/1\tA red dog\truns\tover it\n")
    (tmp_path / "cc3m.tsv").write_text("A red dog\truns\tover it\thttp://a.example/1\n")
    for source in ("cc12m", "cc3m"):
        row = read(tmp_path, source, str(tmp_path / f"{source}.tsv"))[0]
        assert (row["url"], row["caption"]) == ("http://a.example/1", "A red dog runs over it")


@pytest.mark.parametrize(
    "text", [b"http://a.example/1\tone\rhttp://a.example/2\ttwo\r", b"http://a.example/1\t" + b"x" * (5 << 20)]
)
def test_rows_without_line_feeds_are_refused(tmp_path, text):
    (tmp_path / "cc12m.tsv").write_bytes(text)
    with pytest.raises(UserError, match="line 1 is longer than .* or ends with a carriage return alone"):
        read(tmp_path, "cc12m", str(tmp_path / "cc12m.tsv"))


def test_columns_that_differ_in_case_only_are_refused(tmp_path):
    (tmp_path / "b.csv").write_text("URL,url,caption\n1,2,3\n")
    with pytest.raises(UserError, match="b.csv: the columns URL and url in b.csv differ in case only, if at all; rename"):
        read(tmp_path, "generic", str(tmp_path / "b.csv"))
    (tmp_path / "b.csv").write_text("URL,caption\n1,2\n")
    (tmp_path / "c.csv").write_text("Caption,url\n3,4\n")
    rows = read(tmp_path, "generic", str(tmp_path / "*.csv"))
    assert [(row["url"], row["caption"]) for row in rows] == [("1", "2"), ("4", "3")], "files are compared without case"


def test_numbers_in_text_are_numbers_only_if_they_look_like_it(tmp_path):
    values = ["300", " 2.5 ", "1e2", "1_000", "1.0f", "0x10", "nan", "", "300.4", "99999999999"]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["url", "caption", "width", "similarity"], *([f"u{v}", "c", v, v] for v in values)])
    rows = read(tmp_path, "generic", str(tmp_path / "a.csv"))
    assert [row["src_width"] for row in rows] == [300, 3, 100, None, None, None, None, None, 300, None]
    assert [row["similarity"] for row in rows] == [
        300.0,
        2.5,
        100.0,
        None,
        None,
        None,
        None,
        None,
        pytest.approx(300.4),
        99999997952.0,
    ]


def test_jsonl_keeps_what_it_can(tmp_path):
    lines = [
        '{"url": "u1", "caption": 2000}',
        '{"caption": "2020-01-01", "url": "u2"}',
        "broken {",
        "[1]",
        '{"url": "u3", "caption": "a\\ud800b"}',
    ]
    lines += ['{"url": "u4", "caption": "nul \0 and tab\t", "\\ud800": 1}', "\r", '{"URL": "u5", "Caption": true}\r']
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    rows = read(tmp_path, "generic", str(tmp_path / "a.jsonl"))
    assert [(row["url"], row["caption"]) for row in rows] == [
        ("u1", "2000"),
        ("u2", "2020-01-01"),
        (None, None),
        (None, None),
        ("u3", "a?b"),
        ("u4", "nul \0 and tab\t"),
        ("u5", "true"),
    ]


def test_generic_with_named_columns_in_csv_and_jsonl(tmp_path):
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["address", "words"],
                ["http://a.example/1", 'says "yes", twice\nand goes on'],
                ["http://a.example/2", "0123"],
            ]
        )
    rows = read(tmp_path, "generic", str(tmp_path / "mine.csv"), url_col="address", caption_col="words")
    assert [(row["url"], row["caption"]) for row in rows] == [
        ("http://a.example/1", 'says "yes", twice\nand goes on'),
        ("http://a.example/2", "0123"),
    ]
    (tmp_path / "mine.jsonl").write_text(
        "\n".join(json.dumps({"url": f"http://a.example/{n}", "caption": f"c\u2028{n}"}) for n in range(3))
    )
    assert [row["caption"] for row in read(tmp_path, "generic", str(tmp_path / "mine.jsonl"))] == [
        "c\u20280",
        "c\u20281",
        "c\u20282",
    ]


def test_missing_columns_and_files_are_named(tmp_path):
    path = parquet(tmp_path / "odd.parquet", [{"link": "u", "TEXT": "t"}])
    with pytest.raises(
        UserError, match=r"odd.parquet: --source laion2b needs the columns url \(url\); found link, TEXT; .*--url-col"
    ):
        read(tmp_path, "laion2b", path)
    with pytest.raises(UserError, match="no such file"):
        find_files(str(tmp_path / "nothing*.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="broken.parquet: cannot be read"):
        curate(CurateOptions(metadata=str(tmp_path / "broken.parquet"), out=tmp_path / "ds"))
    assert set(SCHEMAS) == {"laion2b", "relaion2b", "coyo700m", "cc12m", "cc3m", "generic"}
