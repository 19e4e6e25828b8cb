"""Catalogue schemas and curation: every reason counted, captions clean, the same rows every time."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.catalogue.curate import CurateOptions, curate, read_curate
from data_pipeline.catalogue.curation_sql import REASONS
from data_pipeline.catalogue.hosts import is_public_address, is_public_host, parse_blocked_hosts
from data_pipeline.catalogue.sources import Cutoffs
from data_pipeline.errors import UserError
from data_pipeline.files import sha256_text, write_json


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
        "aesthetic": 5.0,
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
    "blocked host": [
        {"url": "http://bad.example/1.jpg"},
        {"url": "http://BAD.example:80/2.jpg"},
        {"url": "http://pics.bad.example./3.jpg"},
        {"url": "http://listed.example/4.jpg"},
    ],
    "empty caption": [{"caption": None}, {"caption": " \t\x01\u2028 "}, {"caption": "&nbsp;"}],
    "caption too short": [{"caption": "a  &amp;"}],
    "caption too long": [{"caption": "x" * 1001}],
    "caption is a file name or address": [
        {"caption": "IMG_20190101.JPG"},
        {"caption": "https://a.example/x"},
        {"caption": "www.a.example"},
    ],
    "caption with too few letters": [
        {"caption": "02000"},
        {"caption": "*** 100 % ***"},
        {"caption": "\u2605\u2605\u2605\u2605\u2605 a"},
    ],
    "picture too small": [{"width": 20}],
    "aspect ratio": [{"width": 2000}],
    "low similarity": [{"similarity": 0.01}],
    "nsfw": [{"punsafe": 0.9}],
    "watermark": [{"pwatermark": 0.95}],
    "low aesthetic score": [{"aesthetic": 3.9}],
}


def test_every_reason_is_counted(tmp_path):
    rows = [good(number) for number in range(20)] + [good(3)]
    for number, change in enumerate(change for changes in BAD.values() for change in changes):
        rows.append(good(1000 + number, **change))
    (tmp_path / "hosts.txt").write_text("# hosts\nlisted.example # not these\n\n")
    blocked = ("Bad.example", f"@{tmp_path / 'hosts.txt'}")
    record, kept = run(tmp_path, rows, allow_host=("127.0.0.1:8731",), block_host=blocked, min_aesthetic=4.0)
    assert record["rows_in"] == len(rows)
    assert record["dropped"] == {reason: len(changes) for reason, changes in BAD.items()} | {"duplicate url": 1}
    assert record["rows_out"] == len(kept) == 20
    assert record["rows_in"] == sum(record["dropped"].values()) + record["rows_out"]
    assert {row["url"] for row in kept} == {good(number)["url"] for number in range(20)}
    assert list(record["dropped"]) == [reason for reason in REASONS if reason in record["dropped"]]


def test_bounds_are_met_exactly(tmp_path):
    """The value itself passes, also one that FLOAT rounds; the next one does not."""
    rows = [
        good(0, similarity=0.28, punsafe=0.45, pwatermark=0.8, width=64, height=192, caption="abcde"),
        good(1, similarity=0.2799),
        good(2, punsafe=0.4501),
        good(3, pwatermark=0.8001),
        good(4, width=63, height=64),
        good(5, width=64, height=193),
        good(6, caption="abcd"),
        good(7, caption="abc 1234567"),  # 3 letters of 10 signs
        good(8, caption="abc 12345678"),
    ]
    record, kept = run(tmp_path, rows, source="relaion2b")
    assert sorted(row["url"] for row in kept) == [good(0)["url"], good(7)["url"]]
    reasons = ("low similarity", "nsfw", "watermark", "picture too small", "aspect ratio", "caption too short")
    assert record["dropped"] == dict.fromkeys((*reasons, "caption with too few letters"), 1)


def test_cut_offs_are_the_sources_unless_given(tmp_path):
    def cutoffs(source: str, **changes) -> Cutoffs:
        return CurateOptions(metadata="", out=tmp_path, source=source, **changes).cutoffs()

    assert cutoffs("laion2b") == Cutoffs(min_similarity=0.28) and cutoffs("relaion2b").max_nsfw == 0.45
    coyo = cutoffs("coyo700m")
    assert (coyo.min_side, coyo.min_caption, coyo.max_watermark, coyo.max_per_caption, coyo.max_per_phash) == (200, 6, None, 10, 1)
    changed = cutoffs("coyo700m", min_side=0, max_nsfw=0.0, max_per_phash=0, max_watermark=0.9)
    assert (changed.min_side, changed.max_nsfw, changed.max_per_phash, changed.max_watermark) == (None, 0.0, None, 0.9)
    for wrong in ({"max_aspect": float("nan")}, {"min_side": -1}, {"max_nsfw": float("inf")}):
        with pytest.raises(UserError, match="expected 0 or more"):
            cutoffs("laion2b", **wrong)


def test_captions_of_every_script_have_letters(tmp_path):
    captions = [
        "\u732b\u3068\u72ac\u306e\u5199\u771f",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
        "\u0645\u0631\u062d\u0628\u0627",
        "e\u0301le\u0300ve 1 2",
    ]
    record, kept = run(tmp_path, [good(number, caption=caption) for number, caption in enumerate(captions)])
    assert sorted(row["caption"] for row in kept) == sorted(captions) and record["dropped"] == {}


def test_frequent_captions_and_hashes_are_capped(tmp_path):
    rows = [
        good(number, caption=f"caption {'of many' if number < 10 else number}", phash=f"{number // 2:016x}") for number in range(20)
    ]
    rows += [good(100 + number, phash=None) for number in range(5)]
    record, kept = run(tmp_path, rows, max_per_caption=3, max_per_phash=1)
    frequent = sorted((row for row in rows[:10]), key=lambda row: sha256_text(f"{row['url']}\n{row['caption']}")[:16])[:3]
    left = frequent + rows[10:20]
    first = {}
    for row in sorted(left, key=lambda row: sha256_text(f"{row['url']}\n{row['caption']}")[:16]):
        first.setdefault(row["phash"], row["url"])
    assert {row["url"] for row in kept} == set(first.values()) | {row["url"] for row in rows[20:]}
    assert record["dropped"] == {"caption too frequent": 7, "duplicate picture hash": len(left) - len(first)}


def test_an_empty_hash_is_no_hash(tmp_path):
    rows = [good(number, phash=(None, "", " ")[number % 3]) for number in range(9)]
    assert run(tmp_path, rows, max_per_phash=1)[0]["dropped"] == {}


def test_the_original_caption_is_kept_where_cleaning_changed_it(tmp_path):
    _, kept = run(tmp_path, [good(0, caption=" Tom &amp; Jerry\n"), good(1)])
    assert {row["caption"]: row["original_caption"] for row in kept} == {
        "Tom & Jerry": " Tom &amp; Jerry\n",
        "picture number 1": None,
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://A.example/x", "HTTP://a.EXAMPLE:80/x#y", True),
        ("https://a.example", "https://a.example:443/", True),
        ("https://a.example?q", "https://a.example/?q#", True),
        ("http://a.example./x", "http://me:pw@a.example/x", True),
        ("http://a.example/x", "https://a.example/x", False),
        ("http://a.example/x", "http://a.example/X", False),
        ("http://a.example/x", "http://a.example:8080/x", False),
        ("http://a.example/x?a", "http://a.example/x?b", False),
    ],
)
def test_urls_are_compared_normalised(tmp_path, one, other, same):
    record, kept = run(tmp_path, [good(0, url=one), good(1, url=other)])
    assert record["dropped"] == ({"duplicate url": 1} if same else {}) and {row["url"] for row in kept} <= {one, other}


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
    assert by_url["dropped"] == {"duplicate url": 3} and len({row["url"].lower().split("#")[0] for row in kept}) == 2
    by_both, kept = run(tmp_path, rows, name="b", dedup="url_caption")
    assert by_both["dropped"] == {"duplicate url and caption": 1}
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
    seen, first = os.stat(path), curate(CurateOptions(**options))
    stamp = (tmp_path / "ds/canonical/part-00000.parquet").stat().st_mtime_ns
    assert curate(CurateOptions(**options)) == first
    assert (tmp_path / "ds/canonical/part-00000.parquet").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r"curated with --min-side 64 \(now 201\); give the same as then, .*--force"):
        curate(CurateOptions(**options, min_side=201))
    with pytest.raises(
        UserError, match=r"--dedup url \(now none\), --max-aspect \S+ \(now 2.5\), --block-host none \(now a.b c.d\);"
    ):
        curate(CurateOptions(**options, dedup="none", max_aspect=2.5, block_host=("c.d", "a.b")))
    with pytest.raises(UserError, match=r"--block-host none \(now 10 hosts, sha256 \w{12}\);"):
        curate(CurateOptions(**options, block_host=tuple("abcdefghij")))
    (tmp_path / "d.parquet").write_bytes(Path(path).read_bytes())
    with pytest.raises(UserError, match=r"--metadata c.parquet \(now d.parquet\);"):
        curate(CurateOptions(**options | {"metadata": str(tmp_path / "d.parquet")}))
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=f"with other versions of the files that --metadata {path} names;"):
        curate(CurateOptions(**options))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    record = read_curate(tmp_path / "ds")
    write_json(tmp_path / "ds/canonical/curate.json", {name: record[name] for name in record if name != "options"})
    with pytest.raises(UserError, match=r"curated with --min-side 64 \(now 201\)"):  # by a version that did not note the others
        curate(CurateOptions(**options, min_side=201))
    write_json(tmp_path / "ds/canonical/curate.json", record)
    with pytest.raises(UserError, match="none of 2 rows is left .2 picture too small."):
        curate(CurateOptions(**options, min_side=201), force=True)
    assert curate(CurateOptions(**options)) == first, "a failed attempt leaves the old rows alone"


def test_too_many_blocked_hosts_are_refused():
    with pytest.raises(UserError, match="--block-host: 10001 hosts; expected at most 10000"):
        parse_blocked_hosts([f"h{number}.example" for number in range(10_001)])


@pytest.mark.parametrize(
    ("values", "message"),
    [(["a b"], "'a b' is no host name"), (["http://a.example"], "is no host name"), (["@/no/such/file"], "cannot be read")],
)
def test_bad_blocked_hosts(values, message):
    with pytest.raises(UserError, match=f"--block-host .*{message}"):
        parse_blocked_hosts(values)


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
