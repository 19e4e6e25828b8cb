"""The chain with the real img2dataset on loopback: what comes out is what was put in; killed, it resumes to the
same."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.download.job import download, expected_shards, scrub
from data_pipeline.download.options import DownloadOptions
from data_pipeline.errors import UserError
from data_pipeline.parts import merge, split
from data_pipeline.report.writing import report
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.mark import IN_EVALUATION, mark
from data_pipeline.shards.verify import verify
from data_pipeline.world.on_disk import ROW_TROUBLES, SLOW_ROWS, trouble_count
from tests.worlds import REPOSITORY
from tests.worlds.data.chain import GOOD, content, flags, options
from tests.worlds.processes.watching import alive_in, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
COUNTS = {
    kind: sum(ROW_TROUBLES[number % len(ROW_TROUBLES)] == kind for number in range(trouble_count(GOOD))) for kind in ROW_TROUBLES
}


def test_every_good_row_arrives_and_every_bad_one_is_counted(world, built):
    folder, server = world
    funnel = json.loads((built / "funnel.json").read_text())
    assert funnel["dropped"] == {
        "url scheme not http(s)": COUNTS["file"],
        "private address": COUNTS["private"],
        "empty caption": COUNTS["empty"],
        "picture too small": COUNTS["tiny"],
        "low similarity": COUNTS["dissimilar"],
        "nsfw": COUNTS["nsfw"],
        "duplicate url": COUNTS["duplicate"],
    }
    assert funnel["failed"] == {
        "gone (404, 410)": COUNTS["dead"],
        "not an image": COUNTS["page"],
        "truncated image": COUNTS["corrupt"],
        "too many pixels": COUNTS["bomb"],
        "too many bytes": COUNTS["long"],
        "timeout": SLOW_ROWS,
    }
    assert funnel["rows_in"] == GOOD + trouble_count(GOOD) + SLOW_ROWS
    assert funnel["rows_in"] - sum(funnel["dropped"].values()) == funnel["requested"]
    assert funnel["requested"] - sum(funnel["failed"].values()) == funnel["downloaded"] == GOOD
    assert (
        funnel["downloaded"] == funnel["verified"] == funnel["kept"]
        and funnel["rejected"] == {}
        and funnel["in_damaged_shards"] == 0
    )
    rows = {row["uid"]: row for row in pq.read_table(built / "canonical/part-00000.parquet").to_pylist()}
    got = content(built)
    expected = {f"http://127.0.0.1:{server.port}/images/train/{number:06d}.jpg" for number in range(GOOD)}
    assert {url for url, _, _ in got.values()} == expected
    assert all((rows[uid]["url"], rows[uid]["caption"]) == (url, caption) for uid, (url, _, caption) in got.items())


def run_task(data: Path, server, number: int, count: int, more: dict | None = None) -> subprocess.CompletedProcess:
    """One task of the Slurm array, as Slurm would start it."""
    environment = {
        **os.environ,
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_CPUS_PER_TASK": "2",
        "PYTHON": sys.executable,
        **(more or {}),
    }
    words = [word for word in flags(server) if word not in ("--processes", "2")]
    script = REPOSITORY / "data_pipeline/jobs/slurm_array.sbatch"
    return subprocess.run(
        ["bash", str(script), str(data), *words], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=140
    )


def test_in_parts_by_an_array_of_jobs_comes_what_comes_at_once(world, built, tmp_path, monkeypatch, capsys):
    folder, server = world
    monkeypatch.setattr("data_pipeline.catalogue.curate.ROWS_PER_PART", 90)
    allow = (f"127.0.0.1:{server.port}",)
    out = tmp_path / "parts"
    curate(CurateOptions(metadata=str(folder / "catalogue/train.parquet"), out=out, source="laion2b", allow_host=allow))
    with pytest.raises(UserError, match="0 of 3 parts; run: python -m data_pipeline split"):
        merge(out)
    assert split(out) == split(out) == 3 and "no parts in" in run_task(tmp_path, server, 0, 2).stderr
    first = run_task(out, server, 1, 2)  # the second task has the second of three parts
    assert first.returncode == 0, first.stderr[-3000:]
    assert [part.name for part in sorted((out / "parts").iterdir()) if (part / "download.json").exists()] == ["00001"]
    with pytest.raises(UserError, match="parts/00000/manifest/manifest.json: not there"):
        merge(out)
    assert not (out / "manifest/manifest.json").exists()
    gaps = run_task(out, server, 2, 2, {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "2"})
    assert gaps.returncode == 2 and "the array has gaps" in gaps.stderr
    second = run_task(out, server, 0, 2)
    assert second.returncode == 0, second.stderr[-3000:]
    assert merge(out)["kept"] == GOOD
    assert content(out) == content(built)
    funnel, whole = report(out), json.loads((built / "funnel.json").read_text())
    for name in ("rows_in", "dropped", "requested", "failed", "downloaded", "verified", "rejected", "kept"):
        assert funnel[name] == whole[name], name
    digest = Manifest.load(out).digest
    assert merge(out)["kept"] == GOOD and Manifest.load(out).digest == digest
    with pytest.raises(UserError, match="its tars are in its parts; verify those"):
        verify(out, processes=1)
    # marks belong to the whole; the parts stay as they were verified
    evaluation = tmp_path / "evaluation"
    shutil.copytree(built, evaluation)
    parts = [Manifest.load(part) for part in sorted((out / "parts").iterdir())]
    with pytest.raises(UserError, match="nothing would be left"):
        mark([out], [evaluation], evaluation_bits=0)
    whole = Manifest.load(out)
    rows = [row for number in range(len(whole.shards)) for row in whole.index(number, ["phash", "caption_hash"]).to_pylist()]
    held = [row for number in range(len(parts[0].shards)) for row in parts[0].index(number).to_pylist()]
    pictures, captions = ({row[name] for row in held} for name in ("phash", "caption_hash"))
    counts = mark([out], [parts[0].root], duplicate_bits=-1, evaluation_bits=0)[out]
    assert counts[IN_EVALUATION] == sum(row["phash"] in pictures for row in rows) >= len(held) > 0
    assert sum(counts.values()) == sum(row["phash"] in pictures or row["caption_hash"] in captions for row in rows)
    assert Manifest.load(out).kept == GOOD - sum(counts.values())
    capsys.readouterr()
    assert merge(out)["kept"] == GOOD and "run `mark` again" in capsys.readouterr().err
    assert merge(out)["kept"] == GOOD and "run `mark` again" not in capsys.readouterr().err
    for part in parts:
        assert Manifest.load(part.root) == part
        assert sum(part.index(number).num_rows for number in range(len(part.shards))) == part.kept
    (out / "parts/00001/shards/00000.tar").unlink()
    with pytest.raises(UserError, match="parts/00001/shards/00000.tar: is missing"):
        merge(out)


def test_pictures_are_the_servers_pictures_reduced(world, built):
    """Byte by byte: the server's picture averaged over areas, as JPEG of quality 95; so it cannot be another picture."""
    folder, server = world
    manifest = Manifest.load(built)
    for row in manifest.index(0).to_pylist():
        data = manifest.shards[0].path.read_bytes()[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
        source = cv2.imread(str(folder / "images" / row["url"].split("/images/")[1]))
        assert (row["height"], row["width"]) == (48, 48) != source.shape[:2]
        reduced = cv2.resize(source, (48, 48), interpolation=cv2.INTER_AREA)
        assert data == cv2.imencode(".jpg", reduced, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(), row["url"]


def test_a_finished_download_is_left_alone_and_other_settings_are_refused(world, built, capsys):
    _, server = world
    stamps = {path.name: path.stat().st_mtime_ns for path in (built / "shards").iterdir()}
    state = download(built, DownloadOptions(**options(server)))
    assert "already downloaded" in capsys.readouterr().err
    assert state["requested"] == state["downloaded"] + sum(state["failed"].values())
    assert {path.name: path.stat().st_mtime_ns for path in (built / "shards").iterdir()} == stamps
    had, both = DownloadOptions(**options(server)), {"image_size": 32, "shard_size": 100}
    with pytest.raises(UserError, match=r"downloaded with --image-size 48 \(now 32\); give the same as then, choose"):
        download(built, replace(had, image_size=32))
    with pytest.raises(UserError, match=rf"--image-size 48 \(now 32\), --shard-size {had.shard_size} \(now 100\); give the same"):
        download(built, replace(had, **both))
    with pytest.raises(UserError, match="run first: python -m data_pipeline curate"):
        download(built.parent / "nowhere", DownloadOptions())


def test_the_page_holds_everything_and_escapes_captions(built, tmp_path):
    from data_pipeline.report.page import render, stages_of

    page = (built / "funnel.html").read_text()
    assert (
        page.count("data:image/jpeg;base64,") >= 8
        and "http-equiv" not in page
        and "<script" not in page
        and 'src="http' not in page
    )
    funnel = json.loads((built / "funnel.json").read_text())
    for stage in stages_of(funnel):
        assert f"{stage['count']:,}" in page and stage["name"] in page
        for loss in stage["losses"]:
            assert loss["name"].replace("(", "(") in page
    hostile = render("x", funnel, [{"key": "k", "picture": "", "caption": "<script>alert(1)</script>", "size": ""}])
    assert "<script>" not in hostile and "&lt;script&gt;" in hostile


def test_scrub_keeps_whole_shards_only(built, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(built / "shards", shards)
    rows = expected_shards(json.loads((built / "download.json").read_text())["settings"])
    names = [f"{number:05d}" for number in range(len(rows))]
    assert list(scrub(shards, rows, {})) == names and len(names) >= 7
    os.truncate(shards / "00000.tar", 5000)
    (shards / "00001_stats.json").unlink()
    stats = json.loads((shards / "00002_stats.json").read_text())
    (shards / "00002_stats.json").write_text(json.dumps(stats | {"successes": stats["successes"] - 1}))
    (shards / "00003.tar").unlink()
    (shards / "00004_stats.json").write_text("{")
    with tarfile.open(shards / "00005.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("extra.jpg"))
    assert list(scrub(shards, rows, {})) == names[6:]
    assert {path.name.split(".")[0].removesuffix("_stats") for path in shards.iterdir()} == set(names[6:])


def test_a_killed_verify_leaves_no_process_behind(built, tmp_path):
    root = tmp_path / "ds"
    (root / "shards").mkdir(parents=True)
    for number in range(60):
        for tar in (built / "shards").glob("*.tar"):
            shutil.copy(tar, root / "shards" / f"{number}{tar.name}")
    command = [sys.executable, "-m", "data_pipeline", "verify", "--data", str(root), "--processes", "2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 40
    while not list(root.glob("manifest/index/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None and len(alive_in(process.pid)) >= 3
    process.kill()
    process.wait()
    assert wait_until(lambda: not alive_in(process.pid), 10), alive_in(process.pid)
    assert not (root / "manifest/manifest.json").exists()
