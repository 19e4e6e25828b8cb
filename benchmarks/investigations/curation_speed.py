"""Curation: rows a second of each engine, its memory, and whether both give the same rows.

    python benchmarks/investigations/curation_speed.py --rows 2000000 --engines duckdb spark
    python benchmarks/investigations/curation_speed.py --rows 30000000 --odd 0.02 --engines duckdb --memory-limit 1GB

The catalogue is tests/worlds/data/odd_catalogue.py's, generated first (not counted). Writes a line of JSON an engine; ends with an
error if the engines' rows differ. Memory is the peak of each engine's processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
POLL_SECONDS = 0.2
FULL_ROWS = 2_097_693_557
"""Re-LAION-2B's."""


def session_bytes(session: int) -> int:
    """Resident memory of all processes of a session, pages they share counted once (PSS)."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == session:
                rollup = (stat.parent / "smaps_rollup").read_text()
                total += next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, ValueError, StopIteration):
            continue
    return total


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of a command that must succeed."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, session_bytes(process.pid))
            time.sleep(POLL_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    seconds = time.monotonic() - start
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--odd", type=float, default=0.3, help="share of odd rows")
    parser.add_argument("--engines", nargs="+", default=["duckdb", "spark"], choices=["duckdb", "spark"])
    parser.add_argument("--memory-limit", default="4GB")
    parser.add_argument("--spark-master", default=f"local[{os.cpu_count()}]")
    arguments = parser.parse_args()

    import pyarrow.parquet as pq

    from tests.worlds.data.odd_catalogue import ALLOWED, BLOCKED, write_odd_catalogue

    with tempfile.TemporaryDirectory(prefix="curation_speed_") as name:
        folder = Path(name)
        write_odd_catalogue(folder / "catalogue", arguments.rows, files=max(4, arguments.rows // 1_000_000), odd=arguments.odd)
        files = sorted((folder / "catalogue").glob("*.parquet"))
        size = sum(
            pq.read_metadata(file).row_group(i).total_byte_size
            for file in files
            for i in range(pq.read_metadata(file).num_row_groups)
        )
        print(f"{arguments.rows} rows, {size / 1e9:.2f} GB uncompressed", file=sys.stderr, flush=True)
        parts = {}
        for engine in arguments.engines:
            command = [sys.executable, "-m", "data_pipeline", "curate", "--source", "generic", "--engine", engine]
            command += [
                "--metadata",
                str(folder / "catalogue"),
                "--out",
                str(folder / engine),
                "--memory-limit",
                arguments.memory_limit,
            ]
            command += ["--allow-host", *ALLOWED, "--block-host", *BLOCKED, "--max-per-caption", "10", "--max-per-phash", "4"]
            if engine == "spark":
                command += ["--spark-master", arguments.spark_master]
            seconds, peak = measured(command)
            record = json.loads((folder / engine / "canonical" / "curate.json").read_text())
            parts[engine] = [part["path"] for part in record["parts"]]
            rate = arguments.rows / seconds
            result = {
                "engine": engine,
                "rows": arguments.rows,
                "input_gb": round(size / 1e9, 2),
                "rows_out": record["rows_out"],
                "seconds": round(seconds, 1),
                "rows_per_second": round(rate),
                "peak_gb": round(peak / 1e9, 2),
                "hours_for_relaion2b": round(FULL_ROWS / rate / 3600, 2),
            }
            print(json.dumps(result), flush=True)
        if len(parts) == 2:
            for ours, theirs in zip(*parts.values(), strict=True):
                tables = [
                    pq.read_table(folder / engine / "canonical" / path) for engine, path in zip(parts, (ours, theirs), strict=True)
                ]
                if not tables[0].equals(tables[1]):
                    raise SystemExit(f"{ours}: the engines' rows differ")
            print("both engines gave the same rows in the same order", flush=True)


if __name__ == "__main__":
    main()
