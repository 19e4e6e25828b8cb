"""The sample order at LAION-2B's size: `python benchmarks/investigations/plan_scale.py [--shards 231000] [--manifest]`

A synthetic source of 231,000 shards with 2.1 billion samples: memory of the plan, time of an epoch's start and of one rank's share
of a step. With `--manifest` also a real manifest of as many (empty) shards in a temporary folder: time and memory of loading it;
its indices do not exist, so none is read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.files import write_json
from data_pipeline.shards.manifest import FORMAT, SHARD_SCHEMA, table_digest
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources

SAMPLES_A_SHARD = 9_090


def resident() -> float:
    """MiB at most so far. Not getrusage's: that begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def write_manifest(folder: Path, kept: np.ndarray) -> None:
    """A manifest whose shards are empty files and whose indices do not exist."""
    (folder / "shards").mkdir()
    (folder / "manifest").mkdir()
    rows = []
    for number, count in enumerate(kept.tolist()):
        name = f"{number:06d}"
        (folder / "shards" / f"{name}.tar").touch()
        facts = {"path": f"shards/{name}.tar", "bytes": 0, "samples": count, "kept": count, "sha256": "0" * 64}
        rows.append(facts | {"index": f"manifest/index/{name}.parquet", "index_sha256": "0" * 64})
    table = pa.Table.from_pylist(rows, SHARD_SCHEMA)
    pq.write_table(table, folder / "manifest" / "shards.parquet")
    write_json(folder / "manifest" / "manifest.json", {"format": FORMAT, "digest": table_digest(table)})


def load(folder: str, check_tars: bool) -> tuple[int, float, float]:
    """(samples, seconds, MiB)."""
    before, began = resident(), time.perf_counter()
    sources = Sources.load([folder], check_tars=check_tars)
    return sources.samples, time.perf_counter() - began, resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=231_000)
    parser.add_argument("--manifest", action="store_true")
    options = parser.parse_args()
    kept = np.random.default_rng(0).integers(SAMPLES_A_SHARD - 500, SAMPLES_A_SHARD + 501, options.shards)

    began = time.perf_counter()
    plan = Plan([kept], global_batch_size=32_768, lanes=1_024, window=4_096, seed=1)
    built = time.perf_counter()
    order = plan.sources[0]._epoch_order(0)
    started = time.perf_counter()
    arrays = (plan.first_id, plan.first_of, plan.sources[0].sizes, plan.sources[0].first_id, order.shards, order.cumulative)
    print(f"{options.shards:,} shards, {plan.samples / 1e9:.3f} billion samples, {plan.steps_per_epoch:,} steps an epoch of 32,768")
    print(f"plan built in {1e3 * (built - began):.1f} ms, an epoch's start {1e3 * (started - built):.1f} ms", end="")
    print(f"; {sum(array.nbytes for array in arrays) / 1e6:.1f} MB of arrays")
    for world in (8, 64, 1_024):
        steps = [1 + n * (plan.steps_per_epoch // 10) for n in range(10)]
        for source in plan.sources:
            source._window.cache_clear()  # of other ranks' lanes
        began = time.perf_counter()
        shares = [plan.batch(step, world, world - 1)[1] for step in steps]
        taken = (time.perf_counter() - began) / len(steps)
        touched = np.mean([len(np.unique(plan.locate(share)[0])) for share in shares])
        print(
            f"{world:>5} ranks: one rank's {len(shares[0]):,} samples of a step in {1e3 * taken:.2f} ms, from {touched:.0f} shards"
        )
    if options.manifest:
        with tempfile.TemporaryDirectory() as folder:
            write_manifest(Path(folder), kept)
            for check_tars in (True, False):
                with multiprocessing.get_context("spawn").Pool(1) as pool:  # whose memory holds nothing else
                    samples, seconds, mebibytes = pool.apply(load, (folder, check_tars))
                assert samples == plan.samples
                looked = "every tar's size looked up" if check_tars else "no tar looked at"
                print(f"manifest loaded in {seconds:.1f} s, {mebibytes:.0f} MiB more at most, {looked}")


if __name__ == "__main__":
    main()
