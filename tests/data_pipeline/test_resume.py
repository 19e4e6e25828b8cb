"""The build under attack from our own side: killed, terminated, without a network, on Spark. What comes out is the same."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.download.job import download, expected_shards, longest_seconds, scrub
from data_pipeline.download.options import DownloadOptions
from data_pipeline.download.supervise import ENDED, OUTAGE, START_SECONDS, run_img2dataset, too_few
from data_pipeline.errors import UserError
from data_pipeline.shards.verify import verify
from tests.worlds import REPOSITORY
from tests.worlds.data.chain import SHARD_SIZE, build, content, flags, options, session_of
from tests.worlds.processes.watching import alive_in, processes, wait_until

pytestmark = pytest.mark.timeout(400)  # 110 s of a slow machine's two cores
KILLS = ("amid", "anywhere", "anywhere", "early", "late")
"""Moments: amid the first download, anywhere, early in curation, late in verification or report."""


def curated(folder: Path, server, out: Path) -> list[int]:
    """Curates the world's catalogue into `out`; returns the rows of its shards."""
    allow = options(server)["allow_host"]
    record = curate(CurateOptions(metadata=str(folder / "catalogue/train.parquet"), out=out, source="laion2b", allow_host=allow))
    return expected_shards({"rows": [["part", record["rows_out"], ""]], "shard_size": SHARD_SIZE})


def interrupted_download(root: Path, server, number: int, group: bool, shards: int, more: tuple | list = ()) -> subprocess.Popen:
    """Starts the download command, sends signal `number` to it (or its group) once `shards` shards are done, returns
    the ended process; asserts that nothing of img2dataset lives on."""
    command = [
        sys.executable,
        "-m",
        "data_pipeline",
        "download",
        "--data",
        str(root),
        *flags(server),
        "--processes",
        "1",
        *more,
    ]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    session = None
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            session = session or session_of(process.pid)
            if session and len(list((root / "shards").glob("*_stats.json"))) >= shards:
                break
            time.sleep(0.01)
        assert session is not None and process.poll() is None, process.stderr.read() if process.poll() is not None else "too slow"
        assert alive_in(session)
        (os.killpg if group else os.kill)(process.pid, number)
        process.wait(20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert wait_until(lambda: not alive_in(session), 10)
    return process


def resumed_with_a_killed_worker(root: Path, server, done: int) -> str:
    """Runs the download to its end, but kills its working process once; returns what it said."""
    changes = ["--processes", "1", "--timeout", "2", "--stall", "6"]
    command = [sys.executable, "-m", "data_pipeline", "download", "--data", str(root), *flags(server), *changes]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline, killed = time.monotonic() + 60, False
        while not killed and time.monotonic() < deadline and process.poll() is None:
            session = session_of(process.pid)
            if session and len(list((root / "shards").glob("*_stats.json"))) > done:
                parents = {one.pid: one.parent for one in processes() if one.session == session}
                workers = [pid for pid, parent in parents.items() if parent in parents and parent != session]
                for pid in workers:
                    os.kill(pid, signal.SIGKILL)
                killed = bool(workers)
            time.sleep(0.05)
        assert killed
        server.pause = 0.0
        log = process.communicate(timeout=80)[1]
        assert process.returncode == 0, log
        return log
    finally:
        process.kill()
        process.wait()


def test_killed_terminated_and_damaged_it_resumes_to_the_same_content(world, built, tmp_path):
    folder, server = world
    root = tmp_path / "train"
    rows = curated(folder, server, root)
    server.pause = 0.15
    try:
        process = interrupted_download(root, server, signal.SIGTERM, group=False, shards=0)
        assert process.returncode == 143 and "give the same command again" in process.stderr.read()
        process = interrupted_download(root, server, signal.SIGKILL, group=True, shards=1)
        assert process.returncode == -signal.SIGKILL
        done = sorted((root / "shards").glob("*_stats.json"))
        assert 1 <= len(done) < len(rows), "the kill must hit the middle"
        # A disk that lost the end of a finished tar, too: its stats file still says it is done.
        tar = done[0].with_name(done[0].name.replace("_stats.json", ".tar"))
        os.truncate(tar, tar.stat().st_size - 3000)
        # And a worker that is killed (out of memory): its shard is lost, img2dataset waits for it for ever.
        log = resumed_with_a_killed_worker(root, server, len(list((root / "shards").glob("*_stats.json"))))
        assert "stood still" in log and "starting it again" in log
    finally:
        server.pause = 0.0
    verify(root, processes=1)
    assert content(root) == content(built)


def reached(root: Path) -> str:
    """The stage that a build is in, by what it has left."""
    if not (root / "canonical").exists():
        return "curate"
    if not (root / "download.json").exists() or "downloaded" not in json.loads((root / "download.json").read_text()):
        return "download"
    return "verify" if not (root / "manifest/verify.json").exists() else "report"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.full  # five kills each; one, and a stop, runs always
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_the_content_is_the_same(seed, world, built, tmp_path):
    """kill -9 of the whole build; the next start goes on. Curation and verification are short, so some moments are drawn within
    them. A build that ends before its kill is compared, and a new one begun."""
    folder, server = world
    dice = random.Random(seed)
    stages, roots = [], [tmp_path / "0"]
    server.pause = 0.05
    try:
        while len(stages) < len(KILLS):
            kind = KILLS[len(stages)]
            if kind == "early":
                roots.append(tmp_path / str(len(roots)))
            root = roots[-1]
            command = [sys.executable, "-m", "data_pipeline", "build", "--source", "laion2b", *flags(server)]
            command += ["--metadata", str(folder / "catalogue/train.parquet"), "--out", str(root)]
            process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.PIPE, text=True)
            session, moment = None, time.monotonic() + dice.uniform(0.3, 7.0)
            while process.poll() is None and (kind != "anywhere" or time.monotonic() < moment):
                session = session_of(process.pid) or session
                if kind == "early" and (root / ".canonical.part").exists():
                    time.sleep(dice.uniform(0.0, 0.15))
                    break
                if kind == "amid" and session and reached(root) == "download":
                    time.sleep(dice.uniform(0.0, 1.5))  # less than the timeout of the slow rows
                    break
                if kind == "late" and reached(root) in ("verify", "report"):
                    time.sleep(dice.uniform(0.0, 0.5))
                    break
                time.sleep(0.01)
            if process.poll() is not None:
                assert process.returncode == 0, process.stderr.read()
                roots.append(tmp_path / str(len(roots)))
                continue
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stderr.close()
            stages.append(reached(root))
            assert all(wait_until(lambda own=own: not alive_in(own), 10) for own in (process.pid, session) if own), stages
    finally:
        server.pause = 0.0
    for root in roots:
        build(folder, server, root)
    wanted = content(built)
    for root in roots:
        assert content(root) == wanted, (root, stages)
    assert stages[0] == "download" and len(set(stages)) >= 2, stages


def test_an_outage_does_not_count_as_done(world, built, tmp_path, monkeypatch, capsys):
    """Pictures vanish after some shards and come back: what was asked in between is asked again."""
    folder, server = world
    monkeypatch.setattr("data_pipeline.download.supervise.MIN_ROWS_FOR_A_RATE", 10)
    monkeypatch.setattr("data_pipeline.download.job.FIRST_PAUSE_SECONDS", 0.2)
    root = tmp_path / "train"
    rows = curated(folder, server, root)
    server.answers_left, server.pause = 3 * SHARD_SIZE, 0.2  # slow: three poor shards must be seen before the last is done

    outcomes = []

    def watched(*arguments) -> str:
        outcomes.append(run_img2dataset(*arguments))
        if len(outcomes) == 2:  # between two starts, lest a shard is half from before and half from after
            server.answers_left, server.pause = None, 0.0
        return outcomes[-1]

    monkeypatch.setattr("data_pipeline.download.job.run_img2dataset", watched)
    try:
        download(root, DownloadOptions(**options(server) | {"processes": 1, "attempts": 1, "patience": 100.0}))
    finally:
        server.answers_left, server.pause = None, 0.0
    assert OUTAGE in outcomes[:2] and outcomes[2:] == [ENDED]
    said = capsys.readouterr().err
    assert (
        re.search(r"rows arrived \(\d+ http 404.*\); downloading that shard again", said)
        and "shards to do; starting it again" in said
    )
    verify(root, processes=1)
    assert content(root) == content(built) and len(rows) > 4


@pytest.mark.full
def test_a_lasting_outage_is_named_and_what_comes_can_be_taken(world, tmp_path, monkeypatch, capsys):
    folder, server = world
    monkeypatch.setattr("data_pipeline.download.job.FIRST_PAUSE_SECONDS", 0.1)
    root = tmp_path / "train"
    rows = curated(folder, server, root)
    server.answers_left, server.pause = 0, 0.2  # slow: three poor shards must be seen before the last is done
    try:
        few = options(server) | {"attempts": 1, "patience": 0.0}
        with pytest.raises(UserError, match=r"shards are not done after 1 starts .*brought too little.*--min-success"):
            download(root, DownloadOptions(**few))
        kept = json.loads((root / "download.json").read_text())["shards"]
        assert all(rows[int(name)] < 20 for name in kept), "only what is too small to be judged"
        server.pause = 0.0
        state = download(root, DownloadOptions(**few | {"min_success": 0.0}))
        assert state["downloaded"] == 0 and state["failed"]["http 404"] > 200
        with pytest.raises(UserError, match=r"none of 227 rows arrived \(\d+ http 404"):
            build(folder, server, root, min_success=0.0)
    finally:
        server.answers_left, server.pause = None, 0.0


def test_what_was_taken_is_not_thrown_away_by_another_threshold(built, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(built / "shards", shards)
    rows = expected_shards(json.loads((built / "download.json").read_text())["settings"])
    known = scrub(shards, rows, {}, 0.0)
    assert scrub(shards, rows, known, 1.0) == known and len(known) == len(rows)
    assert len(scrub(shards, rows, {}, 1.0)) < len(rows), "new ones are judged"


def test_what_is_too_few():
    assert too_few(20, 3, 0.2) and not too_few(20, 4, 0.2) and not too_few(19, 0, 0.2) and not too_few(20, 0, 0.0)


def test_the_stated_time_is_an_upper_bound():
    """Against handing out the shards one by one to whichever process is free first."""
    dice = random.Random(0)
    for _ in range(200):
        limits = DownloadOptions(processes=dice.randint(1, 5), threads=dice.randint(1, 9), timeout=2.0)
        rows, busy = [dice.randint(1, 40) for _ in range(dice.randint(0, 12))], [0.0] * limits.processes
        for count in rows:
            busy[busy.index(min(busy))] += -(-count // limits.threads) * limits.timeout
        stated = longest_seconds(limits, rows) - START_SECONDS
        assert max(busy) <= stated <= 2 * max(busy)
    limits = DownloadOptions(processes=2, threads=8, timeout=2.0)
    assert longest_seconds(limits, [30, 30, 30]) == START_SECONDS + 8 * 2.0  # one process has two shards of 4 rounds


@pytest.mark.full
@pytest.mark.java
def test_on_spark_comes_what_comes_here_also_after_a_kill(world, built, tmp_path):
    """img2dataset's pyspark distributor with our downloader inside, on two executors' worth of local Spark."""
    pytest.importorskip("pyspark", reason="needs pip install 'sycoca-ds[spark]'")
    if not shutil.which("java"):
        pytest.skip("needs Java")
    folder, server = world
    root = tmp_path / "a::b [v1]#%20," / "train"
    curated(folder, server, root)
    on_spark = ["--distributor", "pyspark", "--spark-master", "local[2]"]
    server.pause = 0.15
    try:
        process = interrupted_download(root, server, signal.SIGKILL, group=True, shards=1, more=on_spark)
        assert process.returncode == -signal.SIGKILL
    finally:
        server.pause = 0.0
    command = ["bash", "data_pipeline/jobs/spark.sh", "--source", "laion2b", *flags(server), "--out", str(root)]
    command += ["--metadata", str(folder / "catalogue/train.parquet")]
    environment = os.environ | {"PYTHON": sys.executable, "SPARK_MASTER": "local[2]", "PYSPARK_SUBMIT_ARGS": "pyspark-shell"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr + (root / "download.log").read_text()[-3000:]
    assert "already curated" in done.stderr and (root / "funnel.json").exists() and not (root / ".spark").exists()
    assert content(root) == content(built)
