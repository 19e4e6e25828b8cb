"""DuckDB and Spark give the same rows, out of a catalogue of every oddity, and the same parts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.catalogue.curation_sql import REASONS
from data_pipeline.catalogue.engines import DuckDB, EngineError, part_begins
from data_pipeline.catalogue.spark import java_memory
from data_pipeline.errors import UserError
from tests.worlds.data.odd_catalogue import ALLOWED, BLOCKED, write_odd_catalogue

pytestmark = pytest.mark.timeout(400)


def options(metadata: Path, out: Path, **changes) -> CurateOptions:
    return CurateOptions(
        metadata=str(metadata),
        out=out,
        source="generic",
        min_similarity=0.28,
        min_aesthetic=0.5,
        max_per_caption=3,
        max_per_phash=2,
        allow_host=ALLOWED,
        block_host=BLOCKED,
        **changes,
    )


SPARK_DEFAULTS = """\
spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.sql.shuffle.partitions 4
spark.ui.enabled false
"""
"""For some thousand rows: a quick compiler in place of a good one, and few tasks."""


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """Skips where there is no Spark."""
    pytest.importorskip("pyspark", reason="needs pip install 'sycoca-ds[spark]'")
    if not shutil.which("java"):
        pytest.skip("needs Java")
    folder = tmp_path_factory.mktemp("spark_conf")
    (folder / "spark-defaults.conf").write_text(SPARK_DEFAULTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_CONF_DIR", str(folder))
        yield {"engine": "spark", "spark_master": "local[2]", "memory_limit": "2GB"}


@pytest.mark.full
@pytest.mark.parametrize("dedup", ["url", "url_caption"])
def test_spark_gives_the_rows_of_duckdb(tmp_path, spark, dedup, monkeypatch):
    monkeypatch.setattr("data_pipeline.catalogue.curate.ROWS_PER_PART", 4000)
    write_odd_catalogue(tmp_path / "catalogue", 60_000)
    duck = curate(options(tmp_path / "catalogue", tmp_path / "duck", dedup=dedup))
    other = curate(options(tmp_path / "catalogue", tmp_path / "spark", dedup=dedup, **spark))
    assert other["dropped"] == duck["dropped"]
    unused = {"duplicate url and caption" if dedup == "url" else "duplicate url"}
    assert set(duck["dropped"]) == set(REASONS) - unused, "the catalogue must try every rule"
    assert [part["rows"] for part in other["parts"]] == [part["rows"] for part in duck["parts"]] and len(duck["parts"]) > 3
    for part in duck["parts"]:
        ours, theirs = (pq.read_table(tmp_path / name / "canonical" / part["path"]) for name in ("duck", "spark"))
        assert theirs.schema.names == ours.schema.names and theirs.schema.types == ours.schema.types
        assert theirs.equals(ours), "values and order"
    assert other["fingerprint"] == duck["fingerprint"]
    again = curate(options(tmp_path / "catalogue", tmp_path / "duck", dedup=dedup, **spark))
    assert again == duck, "what one engine curated need not be curated by the other"


def test_spark_names_what_is_missing(tmp_path, spark):
    write_odd_catalogue(tmp_path / "catalogue", 50)
    with pytest.raises(UserError, match="--memory-limit lots: expected a whole number"):
        curate(options(tmp_path / "catalogue", tmp_path / "ds", **(spark | {"memory_limit": "lots"})))
    with pytest.raises(UserError, match="needs the columns url .link.; found URL, TEXT"):
        curate(options(tmp_path / "catalogue", tmp_path / "ds", url_col="link", **spark))
    assert [path.name for path in (tmp_path / "ds").iterdir()] == [".curate.lock"]


TEXTS = 40 * [
    b"long " * 150 + b"\xff",  # first, since DuckDB's message has the whole of it
    b"plain words",
    b"caf\xe9 au lait",
    b"cut \xf0\x9f\x98",
    b"\xed\xa0\x80\xff half",
    "b\u00fccher \U0001f600".encode(),
    b"",
]
KINDS = ("text", "binary", "dictionary", "large", "struct.en", "list[]")


def write_kinds(path: Path) -> None:
    """One row a text of TEXTS, in every kind of column that holds texts; the bytes of some are not UTF-8."""
    binary = pa.array(TEXTS, pa.binary())
    offsets, data = binary.buffers()[1:]
    text = pa.StringArray.from_buffers(len(TEXTS), offsets, data)  # says that it is UTF-8
    pairs = pa.array([[None, "a second text"][number % 2] for number in range(len(TEXTS))], pa.string())
    places = pa.array(range(0, 2 * len(TEXTS) + 2, 2), pa.int32())
    both = pa.chunked_array([pa.StringArray.from_buffers(len(TEXTS), offsets, data), pairs]).combine_chunks()
    both = both.take(pa.array([part * len(TEXTS) + number for number in range(len(TEXTS)) for part in (0, 1)]))
    columns = {
        "url": [f"http://pictures.example/{number}.jpg" for number in range(len(TEXTS))],
        "text": text,
        "binary": binary,
        "dictionary": text.dictionary_encode(),
        "large": text.cast(pa.large_binary()),
        "struct": pa.StructArray.from_arrays([binary, pairs], ["en", "de"]),
        "list": pa.ListArray.from_arrays(places, both),
        "width": pa.array([300] * len(TEXTS), pa.int64()),
        "height": pa.StructArray.from_arrays([pa.array([1] * len(TEXTS))], ["pixels"]),
    }
    pq.write_table(pa.table(columns), path)


def kept_of(out: Path) -> list[tuple]:
    rows = pq.read_table(out / "canonical/part-00000.parquet").to_pylist()
    return sorted((row["url"], row["caption"], row["original_caption"]) for row in rows)


@pytest.mark.parametrize("column", KINDS)
def test_wrong_bytes_become_replacement_characters_in_every_kind_of_column(tmp_path, column, capsys):
    write_kinds(tmp_path / "c.parquet")
    given = CurateOptions(
        metadata=str(tmp_path / "c.parquet"), out=tmp_path / "ds", caption_col=column, dedup="none", min_letters=0
    )
    record = curate(given)
    expected = [(f"http://pictures.example/{number}.jpg", text.decode("utf-8", "replace")) for number, text in enumerate(TEXTS)]
    more = []
    if column == "list[]":
        more = [(f"http://pictures.example/{number}.jpg", "a second text") for number in range(1, len(TEXTS), 2)]
        assert record["rows_in"] == 2 * len(TEXTS) and record["dropped"] == {"empty caption": len(TEXTS) // 2 + 40}
    else:
        assert record["rows_in"] == len(TEXTS) and record["dropped"] == {"empty caption": 40}
    kept = sorted((url, caption) for url, caption, _ in kept_of(tmp_path / "ds"))
    assert kept == sorted([*((url, text) for url, text in expected if text), *more])
    assert "the column height holds structs of pixels, which is left out" in capsys.readouterr().err


STRUCT, NOTHING = pa.struct([("en", pa.string())]), pa.null()
HOLLOW = {  # columns that hold nothing, in every way that parquet writes that, and under which name they are asked for
    "nothing": ("column", pa.nulls(3)),
    "texts": ("column", pa.nulls(3, pa.string())),
    "dictionary": ("column", pa.nulls(3, pa.string()).dictionary_encode()),
    "nothing for lists": ("column[]", pa.nulls(3)),
    "no lists": ("column[]", pa.nulls(3, pa.list_(pa.string()))),
    "empty lists": ("column[]", pa.array([[], [None], None], pa.list_(pa.string()))),
    "lists of nothing": ("column[]", pa.array([[], [None], None], pa.list_(NOTHING))),
    "large lists of nothing": ("column[]", pa.array([[], [None], None], pa.large_list(NOTHING))),
    "structs": ("column.en", pa.array([None, {"en": None}, {}], STRUCT)),
    "structs of nothing": ("column.en", pa.array([None, {"en": None}, {}], pa.struct([("en", NOTHING)]))),
    "structs of lists": ("column.en[]", pa.array([None, {"en": []}, {"en": [None]}], pa.struct([("en", pa.list_(NOTHING))]))),
}


@pytest.mark.parametrize("kind", HOLLOW)
def test_a_caption_column_that_holds_nothing_is_that_many_empty_captions(tmp_path, kind):
    """Alone, and beside a file in which it holds something."""
    given, column = HOLLOW[kind]
    urls = [f"http://pictures.example/{number}.jpg" for number in range(3)]
    pq.write_table(pa.table({"url": urls, "column": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"none of 3 rows is left \(3 empty caption\); loosen"):
        curate(CurateOptions(metadata=str(tmp_path / "a.parquet"), out=tmp_path / "ds", caption_col=given))
    text = ["a good text"] if given.endswith("[]") else "a good text"
    held = {"en": text} if ".en" in given else text
    pq.write_table(pa.table({"url": ["http://pictures.example/b.jpg"], "column": [held]}), tmp_path / "b.parquet")
    record = curate(CurateOptions(metadata=str(tmp_path / "[ab].parquet"), out=tmp_path / "ds", caption_col=given))
    assert record["dropped"] == {"empty caption": 3}
    assert kept_of(tmp_path / "ds") == [("http://pictures.example/b.jpg", "a good text", None)]


def write_other_types(folder: Path) -> None:
    """Files with columns of `write_kinds` that hold nothing there, or the same in other types."""
    files = {
        "hollow": (pa.array([None, {"en": None}, {}], pa.struct([("en", NOTHING)])), [[None, None], [], None], pa.list_(NOTHING)),
        "nothing": (pa.nulls(3), [None] * 3, NOTHING),
        "wider": (pa.array([{"en": "a text of wider"}, {"en": None}, None], STRUCT), [[], None, [None]], pa.large_list(NOTHING)),
    }
    widths = {"hollow": pa.array(["300", "x", None]), "nothing": pa.nulls(3), "wider": pa.array([300.0, 299.6, 1e30])}
    for name, (structs, lists, kind) in files.items():
        urls = [f"http://pictures.example/{name}{number}.jpg" for number in range(3)]
        columns = {"url": urls, "struct": structs, "list": pa.array(lists, kind), "width": widths[name]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    columns = {"URL": ["http://pictures.example/lacking.jpg"], "struct": [{"de": "of another language"}]}
    pq.write_table(pa.table(columns), folder / "lacking.parquet")


@pytest.mark.slow
@pytest.mark.parametrize(
    "column, empty",
    [
        ("list[]", 4 + 3 + 3 + 1 + len(TEXTS) // 2 + 40),
        pytest.param("struct.en", 3 + 3 + 2 + 1 + 40, marks=pytest.mark.full),
    ],
)
def test_spark_reads_every_kind_of_column_as_duckdb_does(column, empty, tmp_path, spark):
    """Under a name of every trouble, out of files that disagree on types, and in two columns only, since Spark takes seconds."""
    folder = tmp_path / "url=x [v1]" / "a::b?{c,d}#%20"
    folder.mkdir(parents=True)
    write_kinds(folder / "part[0].parquet")
    write_other_types(folder)
    given = {"metadata": str(folder), "caption_col": column, "dedup": "none", "min_letters": 0}
    duck = curate(CurateOptions(out=folder / "duck", **given))
    other = curate(CurateOptions(out=folder / "spark", **given, **spark))
    assert other["dropped"] == duck["dropped"] and other["rows_in"] == duck["rows_in"] >= len(TEXTS)
    assert duck["dropped"]["empty caption"] == empty
    ours, theirs = (pq.read_table(folder / name / "canonical/part-00000.parquet") for name in ("duck", "spark"))
    assert theirs.equals(ours)


def test_sizes_as_java_writes_them():
    assert [java_memory(text) for text in ("4GB", "512MB", "2 GiB", "1TB")] == ["4g", "512m", "2g", "1t"]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 2100])
def test_parts_begin_where_sparks_formula_says(number):
    begins = [int(text, 16) for text in part_begins(number)]
    assert begins[0] == 0 and begins == sorted(set(begins)) and all(len(text) == 8 for text in part_begins(number))
    for index, begin in enumerate(begins):
        assert begin * number // (1 << 32) == index
        assert index == 0 or (begin - 1) * number // (1 << 32) == index - 1


def test_what_fails_while_rows_are_written_is_an_error_of_the_engine(tmp_path):
    engine = DuckDB(tmp_path, "1GB")
    engine.save("many", "SELECT lpad(to_hex(i), 16, '0') AS uid, 'u' AS url, 'c' AS caption FROM range(300000) AS r(i)")
    for wrong in ("SELECT *, CAST(url AS INTEGER) AS n FROM many", "SELECT *, error('disk full') AS n FROM many"):
        with pytest.raises(EngineError, match="Could not convert|disk full"):
            engine.write(wrong, 2, tmp_path)
    engine.close()


@pytest.mark.full
def test_little_memory_is_enough(tmp_path):
    """DuckDB goes on in files: 140 MB of rows within 100 MB (benchmarks/investigations/curation_speed.py: 4.3 GB within 1 GB)."""
    write_odd_catalogue(tmp_path / "catalogue", 1_000_000, odd=0.05)
    small = curate(options(tmp_path / "catalogue", tmp_path / "small", memory_limit="100MB"))
    large = curate(replace(options(tmp_path / "catalogue", tmp_path / "large"), memory_limit="4GB"))
    assert small["parts"] == large["parts"] and small["dropped"] == large["dropped"]
    with pytest.raises(UserError, match="Out of Memory|out of memory|--memory-limit"):
        curate(options(tmp_path / "catalogue", tmp_path / "none", memory_limit="20MB"))
