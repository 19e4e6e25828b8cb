"""DuckDB and Spark give the same rows, out of a catalogue of every oddity, and the same parts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.catalogue.curation_sql import REASONS
from data_pipeline.catalogue.engines import DuckDB, EngineError, part_begins
from data_pipeline.catalogue.spark import java_memory
from data_pipeline.errors import UserError
from tests.worlds.odd_catalogue import ALLOWED, BLOCKED, write_odd_catalogue

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


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """Skips where there is no Spark; Java's temporary files stay out of /tmp."""
    pytest.importorskip("pyspark", reason="needs pip install 'sycoca-ds[spark]'")
    if not shutil.which("java"):
        pytest.skip("needs Java")
    return {"engine": "spark", "spark_master": "local[2]", "memory_limit": "2GB"}


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


def test_little_memory_is_enough(tmp_path):
    """DuckDB goes on in files: 140 MB of rows within 100 MB (benchmarks/curation_speed.py: 4.3 GB within 1 GB)."""
    write_odd_catalogue(tmp_path / "catalogue", 1_000_000, odd=0.05)
    small = curate(options(tmp_path / "catalogue", tmp_path / "small", memory_limit="100MB"))
    large = curate(replace(options(tmp_path / "catalogue", tmp_path / "large"), memory_limit="4GB"))
    assert small["parts"] == large["parts"] and small["dropped"] == large["dropped"]
    with pytest.raises(UserError, match="Out of Memory|out of memory|--memory-limit"):
        curate(options(tmp_path / "catalogue", tmp_path / "none", memory_limit="20MB"))
