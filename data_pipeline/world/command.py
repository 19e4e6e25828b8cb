"""`python -m data_pipeline scenes`: options in, a world drawn and served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UserError


@dataclass(frozen=True)
class ScenesCommand:
    """Draws a world of scenes with captions, questions, classes and the objects' masks, then serves it on loopback until Ctrl-C."""

    out: Path
    """Folder of the world; made if it is not there. Drawn with the same parameters, it is only served."""
    world: Literal["demo", "hard"] = "demo"
    """demo: up to three objects on a grid, all named, before a plain background; the smallest model learns it in minutes. hard: two
    to five objects anywhere, only some of them named, before patterns."""
    train: int = 8000
    """Good pictures of the training split; about 5 % of rows in trouble come on top."""
    val: int = 256
    """Good pictures of the validation split."""
    test: int = 500
    """Good pictures of the test split."""
    seed: int = 0
    """Seed of everything that is drawn."""
    port: int = 8731
    """Port on 127.0.0.1; it is part of every URL of the catalogues."""
    serve: bool = True
    """Serve after drawing; --no-serve only draws."""

    def run(self) -> int:
        from data_pipeline.world.drawn.worlds import WORLDS
        from data_pipeline.world.on_disk import SPLITS, build_world
        from data_pipeline.world.server import PictureServer, serve_until_interrupted

        for name in SPLITS:
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: expected at least 1 picture")
        total, most = self.train + self.val + self.test, WORLDS[self.world].max_scenes
        if total > most:
            raise UserError(f"--train {self.train}: {total} scenes in all, at most {most}")
        if not 1 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: expected 1 to 65535")
        server = PictureServer(self.out / "images", self.port, troubles=True) if self.serve else None
        build_world(self.out, {"train": self.train, "val": self.val, "test": self.test}, self.seed, self.port, self.world)
        return serve_until_interrupted(server, str(self.out)) if server else 0
