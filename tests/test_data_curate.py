"""Catalogue schemas and curation: every reason counted, captions clean, the same rows every time."""

import csv
import json

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.curate import CurateOptions, curate
from data_pipeline.errors import UserError
from data_pipeline.files import sha256_text
from data_pipeline.hosts import is_public_address, is_public_host
from data_pipeline.sources import SCHEMAS, find_files, open_source


def parquet(path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def run(tmp_path, rows: list[dict], name: str = "ds", **options) -> tuple[dict, list[dict]]:
    path = parquet(tmp_path / f"{name}.parquet", rows)
    record = curate(CurateOptions(metadata=path, out=tmp_path / name, **options))
    return record, pq.read_table(tmp_path / name / "canonical" / "part-00000.parquet").to_pylist()


def good(number: int, **changes) -> dict:
    return {
        "url": f"http://pictures.example/{number}.jpg",
        "caption": f"picture number {number}",
        "width": 300,
        "height": 200,
        "similarity": 0.3,
        "punsafe": 0.01,
        "pwatermark": 0.1,
    } | changes


BAD = {
    "no url": [{"url": None}, {"url": " "}],
    "url scheme not http(s)": [
        {"url": "file:///etc/passwd"},
        {"url": "ftp://a.example/1.jpg"},
        {"url": "data:image/png;base64,AA"},
        {"url": "pictures.example/1.jpg"},
    ],
    "url malformed": [{"url": "http:///1.jpg"}, {"url": "http://a.example/with space.jpg"}],
    "private address": [
        {"url": "http://127.0.0.1/1.jpg"},
        {"url": "http://10.1.2.3:80/1.jpg"},
        {"url": "http://169.254.169.254/x"},
        {"url": "http://[::1]/1.jpg"},
        {"url": "http://localhost:8080/1.jpg"},
        {"url": "http://2130706433/1.jpg"},
        {"url": "http://0x7f.1/1.jpg"},
        {"url": "http://user@127.0.0.1/1.jpg"},
        {"url": "http://127.0.0.1:9/1.jpg"},
        {"url": "HTTP://printer.local/1.jpg"},
    ],
    "empty caption": [{"caption": None}, {"caption": " \t\x01\u2028 "}, {"caption": "&nbsp;"}],
    "caption too short": [{"caption": "a  &amp;"}],
    "caption too long": [{"caption": "x" * 1001}],
    "picture too small": [{"width": 20}],
    "aspect ratio": [{"width": 2000}],
    "low similarity": [{"similarity": 0.01}],
    "nsfw": [{"punsafe": 0.9}],
    "watermark": [{"pwatermark": 0.95}],
}


def test_every_reason_is_counted(tmp_path):
    rows = [good(number) for number in range(20)] + [good(3)]
    for number, change in enumerate(change for changes in BAD.values() for change in changes):
        rows.append(good(1000 + number, **change))
    record, kept = run(tmp_path, rows, allow_host=("127.0.0.1:8731",))
    assert record["rows_in"] == len(rows)
    assert record["dropped"] == {reason: len(changes) for reason, changes in BAD.items()} | {"duplicate": 1}
    assert record["rows_out"] == len(kept) == 20
    assert record["rows_in"] == sum(record["dropped"].values()) + record["rows_out"]
    assert {row["url"] for row in kept} == {good(number)["url"] for number in range(20)}


def test_allowed_host_passes_with_its_port_only(tmp_path):
    rows = [
        good(0),
        good(1, url="http://127.0.0.1:8731/1.jpg"),
        good(2, url="http://127.0.0.1:8732/2.jpg"),
        good(3, url="http://10.0.0.7/3.jpg"),
    ]
    record, kept = run(tmp_path, rows, allow_host=("127.0.0.1:8731", "10.0.0.7:80"))
    assert sorted(row["url"] for row in kept) == [
        "http://10.0.0.7/3.jpg",
        "http://127.0.0.1:8731/1.jpg",
        good(0)["url"],
    ]
    assert record["dropped"] == {"private address": 1}


def test_unknown_values_pass(tmp_path):
    rows = [good(0, width=None, height=None, similarity=None, punsafe=float("nan"), pwatermark=None), good(1)]
    _, kept = run(tmp_path, rows)
    row = next(row for row in kept if row["url"] == good(0)["url"])
    assert [row[name] for name in ("src_width", "similarity", "nsfw", "watermark")] == [None] * 4


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  two\t\twords \n", "two words"),
        ("Tom &amp; Jerry&#39;s", "Tom & Jerry's"),
        ("twice &amp;quot;quoted&amp;quot;", 'twice "quoted"'),
        ("line\u2028separator and\x00nul", "line separator and nul"),
        ("no\u00a0break space", "no break space"),
        ("02000 years", "02000 years"),
        ('"quoted" start', '"quoted" start'),
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
    ],
)
def test_caption_cleaning(tmp_path, raw, clean):
    _, kept = run(tmp_path, [good(0, caption=raw)])
    assert kept[0]["caption"] == clean
    assert kept[0]["uid"] == sha256_text(f"{good(0)['url']}\n{clean}")[:16]


def test_dedup_modes(tmp_path):
    same, url = good(0), good(0)["url"]
    rows = [
        same,
        same,
        good(0, caption="another caption"),
        good(1),
        good(2, url=url.replace("http://pictures", "HTTP://PICTURES") + "#part"),
    ]
    by_url, kept = run(tmp_path, rows, name="a")
    assert by_url["dropped"] == {"duplicate": 3} and len({row["url"].lower().split("#")[0] for row in kept}) == 2
    by_both, kept = run(tmp_path, rows, name="b", dedup="url_caption")
    assert by_both["dropped"] == {"duplicate": 1}
    assert sorted(row["caption"] for row in kept) == [
        "another caption",
        "picture number 0",
        "picture number 1",
        "picture number 2",
    ]
    none, _ = run(tmp_path, rows, name="c", dedup="none")
    assert none["dropped"] == {} and none["rows_out"] == 5


def test_same_input_same_bytes_whatever_the_order(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        good(int(number), caption=f"caption {number % 7} of it", similarity=float(rng.uniform(0.2, 0.4)))
        for number in rng.integers(0, 800, 3000)
    ]
    first, kept = run(tmp_path, rows, name="a")
    second, again = run(tmp_path, [rows[int(place)] for place in rng.permutation(len(rows))], name="b")
    assert kept == again
    assert first["parts"][0]["sha256"] == second["parts"][0]["sha256"]
    assert [row["uid"] for row in kept] == sorted(row["uid"] for row in kept)


def test_done_work_is_kept_and_other_filters_refused(tmp_path, capsys):
    path = parquet(tmp_path / "c.parquet", [good(0), good(1)])
    options = {"metadata": path, "out": tmp_path / "ds"}
    first = curate(CurateOptions(**options))
    stamp = (tmp_path / "ds/canonical/part-00000.parquet").stat().st_mtime_ns
    assert curate(CurateOptions(**options)) == first
    assert (tmp_path / "ds/canonical/part-00000.parquet").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="other filters .*--force"):
        curate(CurateOptions(**options, min_side=201))
    with pytest.raises(UserError, match="none of 2 rows is left .2 picture too small."):
        curate(CurateOptions(**options, min_side=201), force=True)
    assert curate(CurateOptions(**options)) == first, "a failed attempt leaves the old rows alone"


def read(tmp_path, source: str, pattern: str, **options) -> list[dict]:
    connection = duckdb.connect()
    sql = open_source(connection, source, find_files(pattern), **options)
    result = connection.execute(sql)
    return [dict(zip([column[0] for column in result.description], row, strict=True)) for row in result.fetchall()]


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
            "clip_similarity_vitb32": 0.5,
            "nsfw_score_opennsfw2": 0.25,
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
    path = parquet(tmp_path / "part.parquet", [row])
    (tmp_path / ".part.parquet.crc").write_bytes(b"crc")
    names = ("src_width", "src_height", "similarity", "nsfw", "watermark", "aesthetic", "phash")
    found = read(tmp_path, layout.split("-")[0], str(tmp_path))[0]
    assert found == {"url": "u", "caption": "t"} | dict.fromkeys(names) | expected
    assert path


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
        read(tmp_path, "generic", str(tmp_path / "broken.parquet"))
    assert set(SCHEMAS) == {"laion2b", "relaion2b", "coyo700m", "cc12m", "cc3m", "generic"}


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("example.org", True),
        ("8.8.8.8", True),
        ("127.0.0.1", False),
        ("127.1", False),
        ("0", False),
        ("0x7f000001", False),
        ("017700000001", False),
        ("2130706433", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("[::1]", False),
        ("[fe80::1]", False),
        ("[fc00::1]", False),
        ("[2606:4700::1111]", True),
        ("[::ffff:127.0.0.1]", False),
        ("[2002:7f00:1::]", False),
        ("[64:ff9b::7f00:1]", False),
        ("localhost", False),
        ("a.localhost.", False),
        ("", False),
        ("224.0.0.1", False),
    ],
)
def test_public_hosts(host, public):
    assert is_public_host(host) is public


def test_public_addresses():
    assert is_public_address("1.1.1.1") and not is_public_address("0.0.0.0") and not is_public_address("not an address")
