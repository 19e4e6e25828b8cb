"""A drawn world behind a server that can be slow or down, and what the tests of the whole chain do with it."""

import hashlib
import os
import time
from pathlib import Path

from data_pipeline.build import BuildCommand
from data_pipeline.shards.manifest import Manifest
from data_pipeline.world.on_disk import build_world
from data_pipeline.world.server import PictureServer
from tests.worlds.processes.launching import free_port
from tests.worlds.processes.watching import processes

GOOD = 220
SHARD_SIZE = 30


class SlowServer(PictureServer):
    """Takes its time with every picture, so that a kill hits the middle of the work."""

    pause = 0.0
    answers_left: int | None = None
    """After so many answers every picture is gone (404), until this is None again."""

    def find(self, parts):
        time.sleep(self.pause)
        if self.answers_left is not None:
            if self.answers_left <= 0:
                return None
            self.answers_left -= 1
        return super().find(parts)


def start_world(folder: Path) -> SlowServer:
    """Draws the world into `folder` and serves it; to be used as a context manager."""
    port = free_port()
    build_world(folder, {"train": GOOD, "val": 2, "test": 2}, seed=0, port=port)
    return SlowServer(folder / "images", port, troubles=True)


def options(server) -> dict:
    return {
        "image_size": 48,
        "shard_size": SHARD_SIZE,
        "processes": 2,
        "threads": 8,
        "timeout": 2.0,
        "stall": 40.0,
        "max_bytes": 4 << 20,
        "allow_host": (f"127.0.0.1:{server.port}",),
    }


def flags(server) -> list[str]:
    return [
        word
        for name, value in options(server).items()
        for word in (f"--{name.replace('_', '-')}", value[0] if isinstance(value, tuple) else str(value))
    ]


def build(folder: Path, server: SlowServer, out: Path, **changes) -> Path:
    chosen = options(server) | changes
    BuildCommand(metadata=str(folder / "catalogue/train.parquet"), out=out, source="laion2b", **chosen).run()
    return out


def content(root: Path) -> dict[str, tuple[str, str, str]]:
    """uid -> (url, sha256 of the image, caption) of everything the manifest keeps."""
    result = {}
    manifest = Manifest.load(root)
    for number, shard in enumerate(manifest.shards):
        data = shard.path.read_bytes()
        for row in manifest.index(number).to_pylist():
            image = data[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
            text = data[row["text_offset"] : row["text_offset"] + row["text_bytes"]].decode()
            assert row["uid"] not in result
            result[row["uid"]] = (row["url"], hashlib.sha256(image).hexdigest(), text)
    return result


def session_of(parent: int) -> int | None:
    """Session (= pid) of the img2dataset process that a supervisor started."""
    own = os.getsid(parent)
    return next((process.session for process in processes() if process.parent == parent and process.session != own), None)
