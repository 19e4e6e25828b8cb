"""img2dataset under supervision: bounded, watched, resumable, and checked against its own word.

img2dataset runs in a process group of its own. Its stats files say which shards are done; we compare each with its tar
and throw away what disagrees. Facts about its behaviour: it writes tars in place, never ends when a worker is killed,
and leaves orphans when it is killed itself."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.catalogue.curate import read_curate
from data_pipeline.catalogue.hosts import parse_allowed_hosts
from data_pipeline.command_line import other_options
from data_pipeline.download.options import DownloadOptions, chosen_proxies
from data_pipeline.download.supervise import ENDED, HUNG, OUTAGE, START_SECONDS, STOOD_STILL, run_img2dataset, too_few
from data_pipeline.errors import UserError, check_format, interrupted
from data_pipeline.files import write_json
from data_pipeline.lock import only_one
from data_pipeline.progress import Progress, format_seconds
from data_pipeline.shards.tarwalk import TarError, count_samples

FORMAT = 1
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class DownloadCommand(DownloadOptions):
    """Downloads the canonical rows of a data set folder into tars: DIR/shards/. The same command resumes."""

    data: Path
    """Data set folder with canonical/ (from curate)."""
    dry_run: bool = False
    """Say what would be done, and what is done already; change nothing."""

    def run(self) -> int:
        if self.dry_run:
            print("\n".join(plan(self.data, self)))
        else:
            download(self.data, self)
        return 0


@contextmanager
def _signals_end_us() -> Iterator[None]:
    """SIGTERM and SIGINT become SystemExit(143 or 130), so that every `finally` runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        print(interrupted(), file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def settings_of(root: Path, options: DownloadOptions) -> dict:
    """What decides the content of the shards. Two runs in one folder must agree on it: img2dataset numbers shards by
    position, another input or shard size would mix two data sets without a word."""
    parts = read_curate(root)["parts"]
    return {
        "rows": [[part["path"], part["rows"], part["sha256"]] for part in parts],
        **{name: getattr(options, name) for name in ("image_size", "min_image_size", "max_pixels", "shard_size")},
    }


def what_differs(before: dict, now: dict) -> str:
    """In words, of two `settings_of` that are not the same; `before` may lack what earlier versions did not note."""
    before = {"rows": []} | {name: "not noted" for name in now if name != "rows"} | before
    options = other_options(before, {name: value for name, value in now.items() if name != "rows"})
    was, are = (sum(rows for _, rows, _ in settings["rows"]) for settings in (before, now))
    rows = f"from {was} curated rows (now {are}{' others' if was == are else ''})" if before["rows"] != now["rows"] else ""
    return " and ".join(filter(None, [options and f"with {options}", rows]))


def expected_shards(settings: dict) -> list[int]:
    """Rows of every shard, by shard number."""
    result = []
    for _, rows, _ in settings["rows"]:
        for index in range(math.ceil(rows / settings["shard_size"])):
            result.append(min(settings["shard_size"], rows - index * settings["shard_size"]))
    return result


def check_options(options: DownloadOptions) -> None:
    for name, least in (
        ("image_size", 1),
        ("processes", 1),
        ("threads", 1),
        ("timeout", 0.1),
        ("shard_size", 10),
        ("attempts", 1),
        ("min_success", 0),
        ("patience", 0),
    ):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least {least}")
    if options.min_success > 1:
        raise UserError(f"--min-success {options.min_success}: expected a share, 0 to 1")
    if options.shard_size > 100_000:
        raise UserError(f"--shard-size {options.shard_size}: expected at most 100000 rows a tar")
    chosen_proxies(options.proxy)


def download(folder: Path, options: DownloadOptions) -> dict:
    """Downloads all canonical rows into DIR/shards and returns DIR/download.json's content.

    download.json: settings, shards {name: [tar bytes, mtime_ns, samples]}, requested, downloaded, failed {reason: n}.
    UserError: no canonical rows, other settings than those of the shards that are there, no end in sight.
    """
    root = Path(folder).absolute()
    settings, state = look(root, options)
    allowed = parse_allowed_hosts(options.allow_host)
    state_path = root / "download.json"
    refusal = f"{root}: another download is running in this folder; wait for it or end it"
    with only_one(root / ".download.lock", refusal) as lock, _signals_end_us():
        rows = expected_shards(settings)
        if state is None:
            if any((root / "shards").glob("*")):
                raise UserError(
                    f"{root / 'shards'}: holds files but there is no {state_path.name}; delete it or choose another folder"
                )
            state = {"format": FORMAT, "settings": settings, "shards": {}}
            write_json(state_path, state)
        state["shards"] = scrub(root / "shards", rows, state["shards"], options.min_success)
        if len(state["shards"]) == len(rows) and state.get("failed") is not None:
            print(
                f"{root / 'shards'}: already downloaded, {state['downloaded']} of {state['requested']} rows",
                file=sys.stderr,
                flush=True,
            )
            return state
        for name in ("requested", "downloaded", "failed"):  # totals of an earlier end are none of this one
            state.pop(name, None)
        write_json(state_path, state)
        (root / "shards").mkdir(exist_ok=True)
        bound = format_seconds(longest_seconds(options, [rows[n] for n in range(len(rows)) if f"{n:05d}" not in state["shards"]]))
        print(f"{root / 'shards'}: at most {bound} if every URL takes its whole --timeout", file=sys.stderr, flush=True)
        with Progress("download", sum(rows), "rows") as bar:
            _until_done(root, options, allowed, rows, state, lock, bar)
        state |= _totals(root / "shards", rows)
        write_json(state_path, state)
    return state


def look(root: Path, options: DownloadOptions) -> tuple[dict, dict | None]:
    """(what decides the content of the shards, download.json's content if there is one).

    Raises:
        UserError: options that cannot be, no canonical rows, other settings than those of the shards that are there.
    """
    check_options(options)
    parse_allowed_hosts(options.allow_host)
    if (root / "parts").is_dir():
        raise UserError(f"{root}: it is split; download its parts (data_pipeline/jobs/slurm_array.sbatch), then merge")
    settings, state_path = settings_of(root, options), root / "download.json"
    state = _read_state(state_path)
    if state is not None and state["settings"] != settings:
        raise UserError(
            f"{state_path}: the shards were downloaded {what_differs(state['settings'], settings)}; give the same as then, choose "
            f"another folder, or delete {root / 'shards'} and {state_path.name}"
        )
    return settings, state


def plan(folder: Path, options: DownloadOptions) -> list[str]:
    """What `download` would do, as lines. Raises `UserError` as it does before it begins."""
    root = Path(folder).absolute()
    settings, state = look(root, options)
    rows, done = expected_shards(settings), state["shards"] if state else {}
    left = [rows[number] for number in range(len(rows)) if f"{number:05d}" not in done]
    if not left:
        return [f"download: {root / 'shards'}: already downloaded, {len(rows)} shards"]
    bound = format_seconds(longest_seconds(options, left))
    return [
        f"download: {sum(left)} of {sum(rows)} rows in {len(left)} of {len(rows)} shards, into {root / 'shards'}",
        f"  {options.processes} processes of {options.threads} connections; at most {bound} if every URL takes its whole --timeout",
    ]


def longest_seconds(options: DownloadOptions, rows: list[int]) -> float:
    """Within what these shards are downloaded whatever servers do: rounds of URLs that all take their whole time, a shard at a time
    in every process, in any order (Graham's bound). The start is in it; decoding, pauses for an outage and waits for a place among
    hundreds of dead names (fetch.names) are not."""
    rounds = [math.ceil(count / options.threads) for count in rows]
    busiest = (sum(rounds) + (options.processes - 1) * max(rounds, default=0)) / options.processes
    return START_SECONDS + busiest * options.timeout


def _until_done(
    root: Path, options: DownloadOptions, allowed: frozenset, rows: list[int], state: dict, lock: int, bar: Progress
) -> None:
    idle, quiet_since, pause = 0, 0.0, FIRST_PAUSE_SECONDS
    while len(state["shards"]) < len(rows):
        before, started = len(state["shards"]), time.monotonic()
        outcome = run_img2dataset(root, options, allowed, rows, lock, bar)
        state["shards"] = scrub(root / "shards", rows, state["shards"], options.min_success)
        write_json(root / "download.json", state)
        left = len(rows) - len(state["shards"])
        if not left:
            return
        print(f"img2dataset {outcome} with {left} shards to do; starting it again", file=sys.stderr, flush=True)
        if len(state["shards"]) > before:
            idle, pause = 0, FIRST_PAUSE_SECONDS
            continue
        quiet_since = started if idle == 0 else quiet_since
        idle += 1
        # Without a network it stands still, or its shards bring nothing: that may pass. What else ends it will end it again.
        passing = outcome in (STOOD_STILL, OUTAGE, ENDED, HUNG)
        if idle >= options.attempts and not (passing and time.monotonic() - quiet_since < options.patience):
            raise UserError(
                f"{root / 'shards'}: {left} of {len(rows)} shards are not done after {idle} starts without progress "
                f"({outcome}); see {root / 'download.log'}; the same command tries again"
                + ("; if the links are dead, and not the network, give a lower --min-success" if outcome in (OUTAGE, ENDED) else "")
            )
        if passing:
            bar.note(f"{outcome}; next try in {pause:.0f} s")
            time.sleep(min(pause, options.patience))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _read_state(path: Path) -> dict | None:
    try:
        state = json.loads(path.read_text())
        check_format(state["format"], FORMAT, path, f"delete it and {path.parent / 'shards'} and download again")
        return state if isinstance(state["shards"], dict) and state["settings"] else None
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; delete it and {path.parent / 'shards'} and download again") from None


def scrub(shards: Path, rows: list[int], known: dict, min_success: float = 0.0) -> dict:
    """Deletes every shard that is not whole (no stats, an unreadable tar, tar and stats that disagree) or brought too little, and
    returns the others as {name: [tar bytes, mtime_ns, samples]}. `known` ones with the same size and time are not read again, and
    were not too little when they came: another --min-success throws nothing away."""
    shutil.rmtree(shards / "_tmp", ignore_errors=True)
    whole = {}
    names = {path.name.split(".")[0].removesuffix("_stats") for path in shards.glob("*") if path.is_file()}
    for name in sorted(names):
        tar, stats = shards / f"{name}.tar", shards / f"{name}_stats.json"
        try:
            stat = tar.stat()
            seen = [stat.st_size, stat.st_mtime_ns]
            record = json.loads(stats.read_text())
            if int(name) >= len(rows) or record["count"] != rows[int(name)]:
                raise ValueError("stats of another shard")
            if known.get(name, [])[:2] != seen and count_samples(tar) != record["successes"]:
                raise ValueError("tar and stats disagree")
            if name not in known and too_few(record["count"], record["successes"], min_success):
                raise ValueError(
                    f"{record['successes']} of {record['count']} rows arrived ({most_frequent(record['status_dict'])})"
                )
            whole[name] = [*seen, record["successes"]]
        except (OSError, ValueError, KeyError, TypeError, TarError) as error:
            if stats.exists():
                print(f"{tar}: {error}; downloading that shard again", file=sys.stderr, flush=True)
            for path in (stats, tar, shards / f"{name}.parquet"):
                path.unlink(missing_ok=True)
    return whole


def most_frequent(statuses: dict[str, int], most: int = 3) -> str:
    """The commonest failures: `900 timeout, 99 http 404`."""
    failed = Counter({name: count for name, count in statuses.items() if name != "success"})
    return ", ".join(f"{count} {name}" for name, count in failed.most_common(most)) or "no failure noted"


def _totals(shards: Path, rows: list[int]) -> dict:
    """Sums of the stats of whole shards: requested = downloaded + sum of failed."""
    downloaded, failed = 0, Counter()
    for number in range(len(rows)):
        record = json.loads((shards / f"{number:05d}_stats.json").read_text())
        counts = Counter(record["status_dict"])
        downloaded += counts.pop("success", 0)
        failed.update(counts)
    # What img2dataset counted nowhere (a sample whose write failed) must show up somewhere.
    lost = sum(rows) - downloaded - sum(failed.values())
    if lost > 0:
        failed["lost by img2dataset"] += lost
    return {"requested": sum(rows), "downloaded": downloaded, "failed": dict(failed.most_common())}
