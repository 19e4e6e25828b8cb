"""A whole build against a server that does its worst, twice and all at once, by night more often: it ends in time, in bounded
memory, reads nothing local, names every case, and what is good in it arrives as it should look."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.catalogue.curate import read_curate
from data_pipeline.catalogue.sources import CANONICAL
from data_pipeline.download.job import download, longest_seconds
from data_pipeline.download.options import DownloadOptions
from data_pipeline.download.supervise import START_SECONDS
from data_pipeline.files import write_json
from tests.worlds.processes.watching import Seen, Watch
from tests.worlds.strangers import hostile_pictures as made
from tests.worlds.strangers.awkward_pictures import awkward
from tests.worlds.strangers.hostile_server import ENDS, HostileServer, answer, moved, robots, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MOST_MB = 512
"""What a process may take beyond what it had when the first request arrived."""
TIMES = (2, pytest.param(6, marks=pytest.mark.full))
"""How often each case occurs; in the order of a hash, so that they are mixed."""
IMAGE_SIZE = 64
PROCESSES, THREADS, TIMEOUT = 2, 32, 12.0
"""Seconds enough for a good picture where other tests take most of the machine."""
MAX_BYTES = 16 << 20
MOST_DIFFERENCE = 2.0
"""Mean over a picture of the difference of its numbers (0 to 255); storing as JPEG costs up to 1.5."""
VERIFY_SECONDS = 20.0
"""Granted to the other stages; they see a few hundred small pictures."""

REFUSED = {
    **ENDS,
    "to-marker": "scheme refused",
    "noai": "forbidden by robots directive",
    "noai-behind": "forbidden by robots directive",
    "noml-second": "forbidden by robots directive",
    "tdm": "forbidden by robots directive",
    "wide.jpg": "too many pixels",
    "wide.gif": "too many pixels",
    "wide.webp": "too many pixels",
    "bomb.webp": "too many pixels",
    "wide.tif": "too many pixels",
    "scans.jpg": "too many scans",
    "lying.webp": "damaged image",
    "tile.tif": "damaged image",
    "lying.avif": "damaged image",
    "float.tif": "unsupported pixel format",
    "small": "image too small",
}
"""What ends without a picture, and under which name."""


def pictures(server: HostileServer) -> dict[str, np.ndarray]:
    """Puts every picture behind the server; returns what the good ones show."""
    jpeg, shown = made.encoded(made.scene(), "JPEG", quality=95), made.scene()
    heavy = jpeg + bytes(MAX_BYTES - len(jpeg) - 1000)
    bodies = {
        "wide.jpg": made.wide_jpeg(),
        "wide.gif": made.wide_gif(),
        "wide.webp": made.wide_webp(),
        "bomb.webp": made.lossless_webp_bomb(),
        "wide.tif": made.wide_tiff(),
        "scans.jpg": made.many_scans_jpeg(),
        "lying.webp": made.lying_webp(),
        "tile.tif": made.tile_bomb_tiff(),
        "lying.avif": made.lying_avif(),
        "float.tif": made.encoded(made.grey_scene().astype(np.float32) / 255, "TIFF"),
        "small": made.encoded(made.scene(60, 8), "PNG"),
        "heavy": heavy,
        "frames.gif": made.many_frames_gif(),
        "long.png": made.long_data_png(),
    }
    plain = ("ok", "chunked", "no-length", "called-html", "to-ok", "to-utf8", "for-others", "heavy", "heavy-chunked")
    odd = ("gzip", "brotli", "gzipped", "gzipped-unsaid", "deflated", "broken-line", "early-hints", "203", "many-headers")
    good = dict.fromkeys((*plain, *odd), shown)
    good |= {"frames.gif": np.full((64, 64, 3), 1), "long.png": made.scene(32, 32)}
    for name, (data, picture) in awkward().items():
        bodies[name], good[name] = data, picture
    for kind in made.LARGE_KINDS:
        bodies[f"large.{kind}"], good[f"large.{kind}"] = made.large(kind), made.shown_small(kind, IMAGE_SIZE)
    server.answers |= {name: answer(data) for name, data in bodies.items()}
    one_chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(heavy), heavy)
    server.answers["heavy-chunked"] = answer(one_chunk, headers="Transfer-Encoding: chunked\r\n", length=None)
    return {name: np.asarray(picture, np.float64) for name, picture in good.items()}


def caption(name: str, number: int) -> str:
    return f'Copy {number} of the "awkward" picture \'{name}\',\u2028a line away; «früh» 東京 \\n {{"json": [1]}}'


@dataclass
class Run:
    """A finished build."""

    root: Path
    status: int
    seconds: float
    bound: float
    log: str
    seen: dict[int, Seen]
    left: list[int]
    neighbour_requests: list[str]
    good: dict[str, np.ndarray]
    captions: dict[str, str]
    """URL -> caption, of the whole catalogue."""
    times: int


def start(log: Path, command: str, flags: dict) -> subprocess.Popen:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "data_pipeline", command, *words], stdout=file, stderr=file, start_new_session=True
        )


def end(job: subprocess.Popen, watch: Watch, seconds: float) -> tuple[int, list[int]]:
    """(status, processes that were left and are now killed); status -1: it did not end in time."""
    try:
        status = job.wait(seconds)
    except subprocess.TimeoutExpired:
        status = -1
    watch.stop()
    left = watch.left()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.wait()
    return status, left


def too_large(seen: dict[int, Seen]) -> dict[int, tuple[int, str]]:
    """(MB, command) of processes that took more than they may."""
    return {pid: (round(one.growth), one.command) for pid, one in seen.items() if one.growth >= MOST_MB}


def build_flags(folder: Path, server: HostileServer, catalogue: Path, rows: int) -> dict:
    return {
        "metadata": catalogue,
        "out": folder / "out",
        "source": "generic",
        "allow-host": server.host,
        "image-size": IMAGE_SIZE,
        "processes": PROCESSES,
        "verify-processes": 2,
        "threads": THREADS,
        "shard-size": math.ceil(rows / PROCESSES),
        "timeout": TIMEOUT,
        "retries": 0,
        "max-bytes": MAX_BYTES,
        "max-pixels": made.LARGE**2,
        "min-success": 0,
    }


@pytest.fixture(scope="module", params=TIMES)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, times = tmp_path_factory.mktemp("hostile"), request.param
    marker = folder / "marker.jpg"
    marker.write_bytes(made.encoded(Image.new("RGB", (64, 64), (255, 0, 255)), "JPEG"))
    with running() as server, running() as neighbour:
        good = pictures(server)
        server.answers |= {
            "to-marker": moved(f"file://{marker}"),
            "to-neighbour": moved(neighbour.url("ok")),
            "to-ftp": moved(f"ftp://{neighbour.host}/ok"),
            "noml-second": robots("noarchive", "sycoca-ds: noml"),
            "tdm": robots("1", name="TDM-Reservation"),
            "for-others": robots("otherbot: noai", "max-snippet: 20"),
        }
        rows = {f"{server.url(name)}/{number}": caption(name, number) for name in [*REFUSED, *good] for number in range(times)}
        catalogue = folder / "catalogue.parquet"
        pq.write_table(pa.table({"url": list(rows), "caption": list(rows.values())}), catalogue)
        shard = math.ceil(len(rows) / PROCESSES)
        stated = DownloadOptions(processes=PROCESSES, threads=THREADS, timeout=TIMEOUT)
        bound = longest_seconds(stated, [shard, len(rows) - shard]) + VERIFY_SECONDS
        started = time.monotonic()
        job = start(folder / "log", "build", build_flags(folder, server, catalogue, len(rows)))
        watch = Watch(job.pid, server.first)
        watch.start()
        status, left = end(job, watch, bound)
        seconds = time.monotonic() - started
        log = (folder / "log").read_text(errors="replace")[-3000:]
        return Run(folder / "out", status, seconds, bound, log, watch.seen, left, neighbour.requests, good, rows, times)


def samples(root: Path) -> dict[str, tuple[bytes, str]]:
    """URL -> (picture, caption) of every sample in the tars."""
    found = {}
    for path in sorted((root / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            key, _, suffix = name.rpartition(".")
            if suffix == "json":
                found[json.loads(data)["url"]] = members[f"{key}.jpg"], members[f"{key}.txt"].decode("utf-8")
    return found


def test_it_ends_in_its_stated_time_and_leaves_no_process(build: Run):
    assert build.status == 0, build.log
    assert build.seconds < build.bound
    assert build.left == []


def test_every_process_stays_within_its_memory(build: Run):
    assert len(build.seen) >= PROCESSES + 2
    assert max(one.growth for one in build.seen.values()) > 150, "the attack reached its target, and it was watched"
    assert too_large(build.seen) == {}


def test_every_case_ends_under_its_own_reason(build: Run):
    expected = Counter()
    for reason in REFUSED.values():
        expected[reason] += build.times
    funnel = json.loads((build.root / "funnel.json").read_text())
    assert Counter(funnel["failed_messages"]) == expected
    assert funnel["downloaded"] == funnel["kept"] == build.times * len(build.good)
    cases: dict[str, Counter] = {}
    for sidecar in sorted((build.root / "shards").glob("*.parquet")):
        for row in pq.read_table(sidecar).to_pylist():
            name = row["url"].split("/")[3]
            cases.setdefault(name, Counter())[row["error_message"] or row["status"]] += 1
    assert cases == {name: Counter({REFUSED.get(name, "success"): build.times}) for name in [*REFUSED, *build.good]}


def test_nothing_local_and_nothing_private_is_read(build: Run):
    assert build.neighbour_requests == []
    for picture, _ in samples(build.root).values():
        red, green, blue = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), np.float64).mean((0, 1))
        assert not (red > 200 and green < 50 and blue > 200), "the marker file's colour"


def test_good_pictures_arrive_as_they_look(build: Run):
    found = samples(build.root)
    assert {url.split("/")[3] for url in found} == set(build.good)
    wrong = {}
    for url, (picture, _) in found.items():
        name = url.split("/")[3]
        shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), np.float64)
        difference = np.abs(shown - build.good[name]).mean() if shown.shape == build.good[name].shape else shown.shape
        if isinstance(difference, tuple) or difference > MOST_DIFFERENCE:
            wrong[name] = difference
    assert wrong == {}


def test_captions_arrive_intact(build: Run):
    # Curation makes the line separator a space, as it does with every white space.
    for url, (_, text) in samples(build.root).items():
        assert text == build.captions[url].replace("\u2028", " ")


def write_canonical(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Rows as if curation had let them pass."""
    (folder / "canonical").mkdir(parents=True)
    part = folder / "canonical" / "part-00000.parquet"
    columns = {name: [None] * len(rows) for name in CANONICAL} | {
        "uid": [f"{number:016x}" for number in range(len(rows))],
        "url": [url for url, _ in rows],
        "caption": [text for _, text in rows],
    }
    numbers = ("src_width", "src_height")
    schema = pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in CANONICAL])
    pq.write_table(pa.table(columns, schema), part)
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    entry = {"path": part.name, "rows": len(rows), "sha256": digest}
    record = {"format": 2, "fingerprint": "", "source": "generic", "rows_in": len(rows), "dropped": {}, "rows_out": len(rows)}
    write_json(folder / "canonical" / "curate.json", record | {"parts": [entry]})
    assert read_curate(folder)["parts"] == [entry]


def test_urls_that_curation_would_have_dropped(tmp_path: Path):
    """The fetch itself refuses what no catalogue should hold; captions survive it whole, whatever they hold."""
    marker = tmp_path / "marker.jpg"
    marker.write_bytes(made.encoded(made.scene(), "JPEG"))
    captions = [
        "say \"cheese\" 'now'",
        "line\u2028separator \u2029 next\u0085line",
        "two\nlines\r\nand a\ttab",
        "back\\slash, {braces}",
        "🐈‍⬛ é e\u0301 \ufeff \u202eback",
        "\x7f\x01 control",
        "null \x00 inside",
        "=1+1 <b>&amp;",
    ]
    with running() as server, running() as neighbour:
        refused = {
            f"file://{marker}": "scheme refused",
            f"file://localhost{marker}": "scheme refused",
            str(marker): "scheme refused",
            f"ftp://{neighbour.host}/ok": "scheme refused",
            f"gopher://{neighbour.host}/ok": "scheme refused",
            "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=": "scheme refused",
            f"jar:{server.url('ok')}": "scheme refused",
            neighbour.url("ok"): "private address refused",
            f"http://127.1:{server.port}/ok": "private address refused",
            f"http://0x7f000001:{neighbour.port}/ok": "private address refused",
            f"http://[::1]:{neighbour.port}/ok": "private address refused",
            f"http://0:{neighbour.port}/ok": "private address refused",
            f"http://{server.host}@127.0.0.1:{neighbour.port}/ok": "private address refused",
            "http://169.254.169.254/latest/meta-data/": "private address refused",
            f"http://{server.host}\r\nX: y/ok": "malformed url",
            "http://[::1": "malformed url",
            "http:///ok": "malformed url",
            "": "scheme refused",
        }
        good = [(f"{server.url('ok')}/{number}", text) for number, text in enumerate(captions)]
        write_canonical(tmp_path / "out", [(url, "a caption") for url in refused] + good)
        options = DownloadOptions(processes=1, threads=4, timeout=TIMEOUT, min_success=0, allow_host=(server.host,))
        record = download(tmp_path / "out", options)
        assert record["failed"] == Counter(refused.values())
        assert neighbour.requests == []
        assert len(server.requests) == len(good)
        assert all(request.startswith("GET /ok/") for request in server.requests)
    assert {url: text for url, (_, text) in samples(tmp_path / "out").items()} == dict(good)


def test_a_flood_of_large_bodies(tmp_path: Path):
    """As many of the largest bodies at once as there are connections, while slow pictures hold up their decoding: unbounded, 64 of
    them are a GB. All arrive, some late."""
    jpeg = made.encoded(made.scene(), "JPEG", quality=95)
    heavy = jpeg + bytes(MAX_BYTES - len(jpeg))
    kinds = ["heavy"] * 5 + ["heavy-unsaid"] * 2 + ["large"]
    with running() as server:
        server.answers |= {
            "heavy": answer(heavy),
            "heavy-unsaid": answer(heavy, length=None),
            "large": answer(made.large("animated.webp")),
        }
        rows = [(f"{server.url(kinds[number % len(kinds)])}/{number}", f"Number {number}") for number in range(64)]
        write_canonical(tmp_path / "out", rows)
        flags = {"data": tmp_path / "out", "allow-host": server.host, "processes": 1, "threads": THREADS, "timeout": 60}
        limits = {"max-bytes": MAX_BYTES, "max-pixels": made.LARGE**2, "image-size": IMAGE_SIZE}
        job = start(tmp_path / "log", "download", flags | limits)
        watch = Watch(job.pid, server.first)
        watch.start()
        status, left = end(job, watch, START_SECONDS + math.ceil(len(rows) / THREADS) * 60)
    assert (status, left) == (0, []), (tmp_path / "log").read_text()[-3000:]
    record = json.loads((tmp_path / "out" / "download.json").read_text())
    assert (record["downloaded"], record["failed"]) == (len(rows), {})
    assert too_large(watch.seen) == {}
