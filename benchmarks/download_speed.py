"""Downloading under supervision against bare img2dataset: the same rows, server, processes, threads and picture size, in turns.

    python benchmarks/download_speed.py --photos DIR --rows 20000 --rounds 3

DIR holds JPEGs; a server on loopback (asyncio, in a process of its own, from memory) answers every row's own URL with one of them.
Seconds are those of the whole command, start included. Then the tars are verified, which gives verified pictures a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(REPOSITORY)] if __name__ == "__main__" else sys.path[:1]

from benchmarks.frame import Turn, waited  # noqa: E402

BARE = """
import json, sys
if __name__ == "__main__":
    from img2dataset import download
    download(**json.loads(sys.argv[1]))
"""


class PhotoServer(asyncio.Protocol):
    """Answers `GET /N.jpg` with photograph N modulo their number, and closes."""

    photos: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.request = transport, b""

    def data_received(self, data: bytes) -> None:
        self.request += data
        if b"\r\n\r\n" in self.request:
            number = int(self.request.split(b" ", 2)[1].strip(b"/").split(b".")[0])
            body = self.photos[number % len(self.photos)]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()


def serve(folder: str, limit: int, port: multiprocessing.Queue) -> None:
    PhotoServer.photos = [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))[:limit]]

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(PhotoServer, "127.0.0.1", 0, backlog=4096)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def write_catalogue(path: Path, rows: int, port: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(rows)]
    captions = [f"a photograph, number {number}" for number in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)


def turn_of(command: list[str]) -> Turn:
    """Of a whole command. Its processor time is not known: a supervisor ends workers without waiting for them."""
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    start, stalled = time.monotonic(), waited()
    subprocess.run(command, cwd=REPOSITORY, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    return Turn(seconds, 0.0, min(1.0, (waited() - stalled) / seconds))


def measure(photos: Path, rows: int, rounds: int, processes: int, threads: int, shard_size: int) -> dict[str, list[Turn]]:
    """Turns of `ours` and `bare` img2dataset on the same rows, and one of `verify`."""
    port_queue: multiprocessing.Queue = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(str(photos), 500, port_queue), daemon=True)
    server.start()
    port = port_queue.get(timeout=60)
    pipeline = [sys.executable, "-m", "data_pipeline"]
    with tempfile.TemporaryDirectory(prefix="download_speed_") as name:
        folder, found = Path(name), {"ours": [], "bare": []}
        root, allow = folder / "ours", ["--allow-host", f"127.0.0.1:{port}"]
        write_catalogue(folder / "catalogue.parquet", rows, port)
        turn_of([*pipeline, "curate", "--metadata", str(folder / "catalogue.parquet"), "--out", str(root), *allow])
        words = ["--proxy", "none", "--processes", processes, "--threads", threads, "--shard-size", shard_size]
        settings = {
            "url_list": str(root / "canonical"),
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "save_additional_columns": ["uid"],
            "output_folder": str(folder / "bare"),
            "output_format": "webdataset",
            "processes_count": processes,
            "thread_count": threads,
            "number_sample_per_shard": shard_size,
            "image_size": 288,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "extract_exif": False,
            "compute_hash": "sha256",
            "enable_wandb": False,
        }
        script = folder / "bare.py"
        script.write_text(BARE)
        for _ in range(rounds):
            shutil.rmtree(root / "shards", ignore_errors=True)
            (root / "download.json").unlink(missing_ok=True)
            found["ours"].append(turn_of([*pipeline, "download", "--data", str(root), *allow, *map(str, words)]))
            state = json.loads((root / "download.json").read_text())
            if state["downloaded"] != rows:
                raise SystemExit(f"ours: {state['downloaded']} of {rows} rows: {state['failed']}")
            shutil.rmtree(folder / "bare", ignore_errors=True)
            found["bare"].append(turn_of([sys.executable, str(script), json.dumps(settings)]))
            got = sum(json.loads(path.read_text())["successes"] for path in (folder / "bare").glob("*_stats.json"))
            if got != rows:
                raise SystemExit(f"bare img2dataset: {got} of {rows} rows")
            print(f"ours {found['ours'][-1].seconds:.1f} s, bare img2dataset {found['bare'][-1].seconds:.1f} s", file=sys.stderr)
        found["verify"] = [turn_of([*pipeline, "verify", "--data", str(root), "--processes", str(processes)])]
    server.terminate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--shard-size", type=int, default=1000)
    options = parser.parse_args()
    rows, rounds = options.rows, options.rounds
    found = measure(options.photos, rows, rounds, options.processes, options.threads, options.shard_size)
    ours, bare = ([turn.seconds for turn in found[name]] for name in ("ours", "bare"))
    result = {
        "rows": rows,
        "rounds": rounds,
        "images_per_second": round(rows / statistics.median(ours)),
        "bare_img2dataset": round(rows / statistics.median(bare)),
        "ratio": round(statistics.median(b / o for o, b in zip(ours, bare, strict=True)), 3),
        "verified_per_second": round(rows / found["verify"][0].seconds),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
