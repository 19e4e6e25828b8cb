"""Catalogues that are text: what is a row, which quotes are quotes, what a jsonl's values become."""

import csv
import json

import pytest

from data_pipeline.catalogue.text_catalogues import json_rows, text_columns
from data_pipeline.errors import UserError
from tests.worlds.data.catalogues import read


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


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_csv_is_divided_as_its_header_is(tmp_path, separator):
    told = [["url", "similarity", "caption"], ["http://a.example/1;v=2,3", "0.5", 'a dog; a cat, "both" | one\tday']]
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(told)
    (row,) = read(tmp_path, "generic", str(tmp_path / "mine.csv"))
    assert (row["url"], row["similarity"], row["caption"]) == (told[1][0], 0.5, told[1][2])


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


def test_lists_that_only_one_jsonl_has(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"url": "u1", "captions": null, "x": null}\n' * 2)
    (tmp_path / "b.jsonl").write_text('{"url": "u2", "captions": null}\n{"url": "u3", "captions": ["a", "b"]}\n')
    rows = read(tmp_path, "generic", str(tmp_path / "*.jsonl"), caption_col="captions[]")
    found = [("u1", ""), ("u1", ""), ("u2", ""), ("u3", "a"), ("u3", "b")]
    assert sorted((row["url"], row["caption"] or "") for row in rows) == found  # of several files in any order
    rows = read(tmp_path, "generic", str(tmp_path / "a.jsonl"), caption_col="x")
    assert [(row["url"], row["caption"]) for row in rows] == [("u1", None)] * 2
    (tmp_path / "b.jsonl").write_text('{"url": "u2", "captions": null}\n{"url": "u3", "captions": "a"}\n')
    rows = read(tmp_path, "generic", str(tmp_path / "*.jsonl"), caption_col="captions")
    assert sorted(row["caption"] or "" for row in rows) == ["", "", "", "a"]
    columns = {column.name: column.kind for column in text_columns([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], None)}
    assert columns == {"url": "text", "captions": "text", "x": "text"}


def test_objects_nested_too_deeply_hold_nothing(tmp_path):
    # Some of them json reads, and from Python 3.12 on deeper than functions may call each other.
    lines = ['{"a":' * depth + "1" + "}" * depth for depth in range(500, 100_000, 1500)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"url": "u"}']))
    assert list(json_rows(tmp_path / "a.jsonl"))[-1] == (len(lines) + 1, {"url": "u"})


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
        'http://a.example/6.jpg,"line one\nhttp://x.example, ok"',
        'http://a.example/7.jpg,"the last one',
    ]
    found = read(tmp_path, "generic", csv_of(tmp_path, rows))
    assert [row["caption"].rstrip("\n") for row in found] == [
        'two\nlines, and "quotes"',
        "see\nhttp://b.example/x.html\nfor more, please",
        "Quoted in front",
        'a 3" pipe',
        "",
        "",
        "line one\nhttp://x.example, ok",
        "the last one",
    ]
    assert [row["url"][-5] for row in found] == list("01234567")


def test_columns_named_twice_matter_only_where_they_are_taken(tmp_path):
    rows = read(tmp_path, "generic", csv_of(tmp_path, ["u,c,1,2"], header="url,caption,x,x"))
    assert [(row["url"], row["caption"]) for row in rows] == [("u", "c")]
    with pytest.raises(UserError, match="the columns caption and caption in c.csv differ in case only, if at all"):
        read(tmp_path, "generic", csv_of(tmp_path, ["u,c,d"], header="url,caption,caption"))
