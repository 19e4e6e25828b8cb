"""One start of img2dataset in a process group of its own, watched until it ends or must be ended."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.fetch.limits import Limits
from data_pipeline.files import write_json
from data_pipeline.own_package import import_path
from data_pipeline.progress import Progress

if TYPE_CHECKING:
    from data_pipeline.download.options import DownloadOptions

POLL_SECONDS = 0.2
LOOK_SHARE = 10.0
"""Looking at hundreds of thousands of shards takes a second: between two looks so many times as long passes."""
START_SECONDS = 60.0
"""Granted to import img2dataset in every process (half a second alone, much more on a busy machine) before the watchdog
counts."""
END_SECONDS = 15.0
"""Granted to end after the last shard is done; img2dataset is known to hang there."""
OUTAGE_SHARDS = 3
"""So many shards in a row that brought too little are an outage: the run ends, lest all shards go through it."""
MIN_ROWS_FOR_A_RATE = 20
GUESSED_SAMPLE_BYTES = 7000
ENDED, STOOD_STILL, OUTAGE, HUNG = "ended", "stood still", "brought too little", "hung after the last shard"
USER_AGENT = "Mozilla/5.0 (compatible; {token}; image dataset research)"


def too_few(count: int, successes: int, min_success: float) -> bool:
    """Whether a shard brought so little that it must have been an outage. Small ones may by chance."""
    return count >= MIN_ROWS_FOR_A_RATE and successes < min_success * count


def _job_settings(root: Path, options: DownloadOptions, allowed: frozenset, shards_to_do: int) -> dict:
    limits = Limits(
        timeout=options.timeout,
        max_bytes=options.max_bytes,
        max_pixels=options.max_pixels,
        retries=options.retries,
        allowed_hosts=allowed,
        user_agent=USER_AGENT.format(token=options.user_agent_token),
    )
    return {
        "limits": asdict(limits) | {"allowed_hosts": sorted(allowed)},
        "proxy": options.proxy,
        "spark_master": options.spark_master,
        "environment": worker_environment(options.max_pixels),
        "img2dataset": {
            "url_list": str(root / "canonical"),
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "save_additional_columns": ["uid"],
            "output_folder": str(root / "shards"),
            "output_format": "webdataset",
            "distributor": "pyspark" if options.distributor == "pyspark" else "multiprocessing",
            "processes_count": max(1, min(options.processes, shards_to_do)),
            "thread_count": options.threads,
            "number_sample_per_shard": options.shard_size,
            "image_size": options.image_size,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "min_image_size": options.min_image_size,
            "skip_reencode": False,
            "encode_format": "jpg",
            "encode_quality": 95,
            "extract_exif": False,
            "compute_hash": "sha256",
            "timeout": max(1, math.ceil(options.timeout)),
            "retries": 0,
            "incremental_mode": "incremental",
            "enable_wandb": False,
            "user_agent_token": options.user_agent_token,
        },
    }


def worker_environment(max_pixels: int) -> dict[str, str]:
    """Environment variables of every process that downloads."""
    return {
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(max_pixels),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",  # the supervisor watches the log grow
    }


def _start(root: Path, options: DownloadOptions, allowed: frozenset, shards_to_do: int, lock: int) -> subprocess.Popen:
    settings = root / ".download.job.json"
    write_json(settings, _job_settings(root, options, allowed, shards_to_do))
    environment = os.environ | import_path() | worker_environment(options.max_pixels)
    with open(root / "download.log", "ab") as log:
        # -c rather than -m: classes of __main__ cannot be unpickled in spawned workers under their own name.
        return subprocess.Popen(
            [sys.executable, "-c", "from data_pipeline.download.img2dataset_job import main; main()", str(settings)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=(lock,),
        )


def _kill_group(job: subprocess.Popen) -> None:
    """Ends img2dataset with all its workers, and waits until they are gone."""
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    job.wait()
    job.stdin.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.killpg(job.pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.02)


def _look(shards: Path, rows: list[int]) -> tuple[int, int, int]:
    """(shards done, bytes of all tars, rows done by estimate for the shards being written)."""
    sizes, done = {}, set()
    with os.scandir(shards) as entries:
        for entry in entries:
            if entry.name.endswith(".tar"):
                try:
                    sizes[entry.name[:-4]] = entry.stat().st_size
                except FileNotFoundError:
                    continue
            elif entry.name.endswith("_stats.json"):
                done.add(entry.name.removesuffix("_stats.json"))
    done_rows = sum(rows[int(name)] for name in done if name.isdigit() and int(name) < len(rows))
    done_bytes = sum(sizes.get(name, 0) for name in done)
    per_row = done_bytes / done_rows if done_rows and done_bytes else GUESSED_SAMPLE_BYTES
    running = sum(
        min(rows[int(name)], int(size / per_row))
        for name, size in sizes.items()
        if name not in done and name.isdigit() and int(name) < len(rows)
    )
    return len(done), sum(sizes.values()), done_rows + running


def run_img2dataset(root: Path, options: DownloadOptions, allowed: frozenset, rows: list[int], lock: int, bar: Progress) -> str:
    """One start of img2dataset, until it ends or must be ended; says how it ended."""
    shards = root / "shards"
    stall = max(options.stall, 3 * options.timeout)
    done_before = _done(shards)
    job = _start(root, options, allowed, len(rows) - len(done_before), lock)
    try:
        changed = time.monotonic()
        last, moved, all_done_at, poor, seen = None, False, None, 0, done_before
        while job.poll() is None:
            now = time.monotonic()
            done, size, estimate = _look(shards, rows)
            looked = time.monotonic() - now
            # img2dataset notes in its log every finished part that it reads again on the way to new ones: that is life, too
            signs = done, size, (root / "download.log").stat().st_size
            bar.set(max(bar.done, min(estimate, sum(rows))))
            bar.note(f"{done}/{len(rows)} shards")
            if signs != last:
                changed, moved = now, moved or (last is not None and signs[:2] != last[:2])
                last = signs
            if done > len(seen):
                new = _done(shards) - seen
                seen = seen | new
                for name in sorted(new):
                    poor = poor + 1 if too_few(*_counts(shards, name), options.min_success) else 0
                if poor >= OUTAGE_SHARDS and done < len(rows):
                    return OUTAGE
            if done == len(rows):
                all_done_at = all_done_at or now
                if now - all_done_at > END_SECONDS:
                    return HUNG
            elif now - changed > stall + (0 if moved else START_SECONDS):
                return STOOD_STILL
            time.sleep(max(POLL_SECONDS, LOOK_SHARE * looked))
        bar.set(_look(shards, rows)[2])
        return ENDED if job.returncode == 0 else f"ended with status {job.returncode}"
    finally:
        _kill_group(job)


def _done(shards: Path) -> set[str]:
    return {path.name.removesuffix("_stats.json") for path in shards.glob("*_stats.json")}


def _counts(shards: Path, name: str) -> tuple[int, int]:
    """(rows, successes) of a shard by its stats file; (0, 0) for one that cannot be read, which `scrub` will notice."""
    try:
        record = json.loads((shards / f"{name}_stats.json").read_text())
        return int(record["count"]), int(record["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
