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


NAMES = "cc12m [v1]|a*b|a?b|a{b,c}|a\\b|url=x|caption=y|width=10|a::b|s3:x|it's|50%20|a#b|$HOME|~x|x ".split("|")


@pytest.mark.parametrize("name", NAMES)
def test_a_catalogue_and_its_rows_may_lie_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name / "cat"
    folder.mkdir(parents=True)
    for number in (0, 1):
        rows = [{"url": f"http://a.example/{number}{i}.jpg", "caption": f"picture number {i}"} for i in range(20)]
        parquet(folder / f"part-{number}[{number}].parquet", rows)
    for metadata in (folder, folder / "part-0[0].parquet", folder / "part-*.parquet"):
        out = tmp_path / name / metadata.name
        record = curate(CurateOptions(metadata=str(metadata), out=out))
        assert record["rows_out"] == record["rows_in"] == (20 if metadata.name == "part-0[0].parquet" else 40)
        row = pq.read_table(out / "canonical/part-00000.parquet").to_pylist()[0]
        assert row["url"].startswith("http://a.example/") and row["caption"].startswith("picture") and row["src_width"] is None


def table_of(tmp_path, **columns) -> str:
    columns = {"url": [f"http://a.example/{i}.jpg" for i in range(3)]} | columns
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    return str(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([["a", "b"], ["c"], None]),
            "caption holds lists of text; expected text: make a row of each, --caption-col",
        ),
        (
            pa.array([{"en": "a", "de": "b"}] * 3),
            "holds structs of en, de; expected text: take a field of it, --caption-col caption.en",
        ),
        (pa.array([[{"raw": "a"}]] * 3), "holds list<.*raw.*>; expected text: choose another with --caption-col"),
        (pa.array([[("en", "a")]] * 3, pa.map_(pa.string(), pa.string())), "holds map<string, string.*>; expected text"),
        (pa.array([0.5, 1.5, 2.5]), "holds numbers; expected text"),
        (pa.array([0, 1, 2], pa.timestamp("us")), r"holds timestamp\[us\]; expected text"),
        (pa.array([b"abcd"] * 3, pa.binary(4)), r"holds fixed_size_binary\[4\]; expected text"),
    ],
)
def test_captions_that_are_no_text_are_refused_by_name(tmp_path, column, message):
    with pytest.raises(UserError, match=f"--metadata c.parquet: .*{message}"):
        read(tmp_path, "generic", table_of(tmp_path, caption=column))


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pa.array(["a", "b", None], pa.large_string()), ["a", "b", None]),
        (pa.array([b"a", "\u732b".encode(), None]), ["a", "\u732b", None]),
        (pa.array([1, None, 1954]), ["1", None, "1954"]),
        (pa.array([0, 1, None], pa.date32()), ["1970-01-01", "1970-01-02", None]),
        (pa.nulls(3), [None] * 3),
    ],
)
def test_captions_of_other_kinds_are_the_text_that_they_are(tmp_path, column, texts):
    rows = read(tmp_path, "generic", table_of(tmp_path, caption=column))
    assert [row["caption"] for row in rows] == texts


def test_a_list_gives_a_row_a_text_and_a_struct_its_field(tmp_path):
    lists = pa.array([["a", "b"], [], None])
    rows = read(tmp_path, "generic", table_of(tmp_path, captions=lists), caption_col="captions[]")
    assert [(row["url"][-5], row["caption"]) for row in rows] == [("0", "a"), ("0", "b"), ("1", None), ("2", None)]
    structs = pa.array([{"en": {"long": "a"}}, {"en": {"long": None}}, None])
    rows = read(tmp_path, "generic", table_of(tmp_path, texts=structs), caption_col="texts.en.long")
    assert [row["caption"] for row in rows] == ["a", None, None]
    with pytest.raises(UserError, match="the column url holds lists of text; expected text: choose another with --url-col"):
        read(tmp_path, "generic", table_of(tmp_path, url=lists, caption=["a", "b", "c"]))
    with pytest.raises(UserError, match=r"needs the columns caption .captions\[\].; found url, captions"):
        read(tmp_path, "generic", table_of(tmp_path, captions=["a", "b", "c"]), caption_col="captions[]")


def test_files_that_disagree_on_captions_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet", [{"url": "u1", "caption": "one"}])
    parquet(tmp_path / "b.parquet", [{"url": "u2", "caption": ["one", "two"]}])
    with pytest.raises(UserError, match="the column caption holds text and in b.parquet lists of text; expected text"):
        read(tmp_path, "generic", str(tmp_path))
    parquet(tmp_path / "b.parquet", [{"url": "u2", "caption": {"en": "two"}}])
    with pytest.raises(UserError, match="the column caption holds text and in b.parquet structs of en; expected text"):
        read(tmp_path, "generic", str(tmp_path))
    parquet(tmp_path / "b.parquet", [{"URL": "u2", "CAPTION": None}])
    assert [(row["url"], row["caption"]) for row in read(tmp_path, "generic", str(tmp_path))] == [("u1", "one"), ("u2", None)]


def test_lists_and_objects_in_a_jsonl(tmp_path):
    lines = [{"url": "u1", "caption": ["a", "b\ud800"]}, {"url": "u2", "Caption": "c"}, {"url": "u3", "caption": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="a.jsonl: the column caption holds lists of text; expected text: make a row of each"):
        read(tmp_path, "generic", str(tmp_path / "a.jsonl"))
    rows = read(tmp_path, "generic", str(tmp_path / "a.jsonl"), caption_col="caption[]")
    assert [(row["url"], row["caption"]) for row in rows] == [("u1", "a"), ("u1", "b?"), ("u2", "c"), ("u3", None)]
    lines = [{"url": "u1", "caption": {"en": "a", "more": {"x": 1}}}, {"url": "u2", "caption": {"en": None}}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="caption holds objects; expected text: take a field of it, --caption-col caption.en"):
        read(tmp_path, "generic", str(tmp_path / "b.jsonl"))
    rows = read(tmp_path, "generic", str(tmp_path / "b.jsonl"), caption_col="caption.en")
    assert [(row["url"], row["caption"]) for row in rows] == [("u1", "a"), ("u2", None)]
    for late, held in (({"en": "x"}, "an object .caption.en."), (["x"], "a list"), ([["x"]], "a list")):
        lines = [*({"url": f"u{i}", "caption": "a"} for i in range(10_000)), {"url": "u", "caption": late}]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(UserError, match=f"c.jsonl: line 10001: caption holds {held}; expected text"):
            read(tmp_path, "generic", str(tmp_path / "c.jsonl"))


def csv_of(tmp_path, rows: list[str], end: str = "\n", header: str = "url,caption") -> str:
    (tmp_path / "c.csv").write_bytes((end.join([header, *rows]) + end).encode())
    return str(tmp_path / "c.csv")


def plain_rows(first: int, last: int) -> list[str]:
    return [f"http://a.example/{number}.jpg,picture number {number}" for number in range(first, last)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "closing",
    [
        [],
        ['http://a.example/c.jpg,a 3" pipe of steel'],
        ['http://a.example/c.jpg,5 ft 10"'],
        ['http://a.example/c.jpg,"Another one, 1960"'],
        ['http://a.example/c.jpg,""'],
        ['"http://a.example/c.jpg","x"'],
    ],
)
def test_a_quote_that_takes_rows_for_its_text_is_named(tmp_path, end, closing):
    for between in (0, 1, 30):
        stray = ['http://a.example/s.jpg,"Quoted film title, 1954']
        rows = [*plain_rows(0, 10), *stray, *plain_rows(0, between), *closing, *plain_rows(40, 50)]
        with pytest.raises(UserError, match=r"c.csv: line 12: a quote opens a field there and is not closed"):
            read(tmp_path, "generic", csv_of(tmp_path, rows, end))


def test_a_stray_quote_where_the_caption_comes_first_and_after_a_good_one(tmp_path):
    good = '"one\nmore","two\nlines",http://a.example/1.jpg'
    rows = [good, 'x,"Quoted film,http://a.example/2.jpg', "y,z 5 ft,http://a.example/3.jpg", 'y,5 ft 10",http://a.example/4.jpg']
    for stray in (rows, [good, 'x,"Quoted', *["film, " * 200] * 5000]):
        with pytest.raises(UserError, match="c.csv: line 5: a quote opens"):
            read(tmp_path, "generic", csv_of(tmp_path, stray, header="id,caption,url"))


def test_quotes_that_are_closed_or_harm_no_row_are_read_as_ever(tmp_path):
    rows = [
        'http://a.example/0.jpg,"two\nlines, and ""quotes"""',
        'http://a.example/1.jpg,"see\nhttp://b.example/x.html\nfor more, please"',
        'http://a.example/2.jpg,"Quoted" in front',
        'http://a.example/3.jpg,a 3" pipe, and 5" more',
        'http://a.example/4.jpg,""',
        '"http://a.example/5.jpg","\n"',
        'http://a.example/6.jpg,"the last one',
    ]
    found = read(tmp_path, "generic", csv_of(tmp_path, rows))
    assert [row["caption"].rstrip("\n") for row in found] == [
        'two\nlines, and "quotes"',
        "see\nhttp://b.example/x.html\nfor more, please",
        "Quoted in front",
        'a 3" pipe',
        "",
        "",
        "the last one",
    ]
    assert [row["url"][-5] for row in found] == list("0123456")


def test_columns_named_twice_matter_only_where_they_are_taken(tmp_path):
    rows = read(tmp_path, "generic", csv_of(tmp_path, ["u,c,1,2"], header="url,caption,x,x"))
    assert [(row["url"], row["caption"]) for row in rows] == [("u", "c")]
    with pytest.raises(UserError, match="the columns caption and caption in c.csv differ in case only, if at all"):
        read(tmp_path, "generic", csv_of(tmp_path, ["u,c,d"], header="url,caption,caption"))
