"""Evaluates the checkpoints of a run while it trains: `evaluate.py --watch RUN`.

    OUT/step_NNNNNNNN/   an evaluation each, as of `--checkpoint`; watched.json in it says that it is finished, and of what
    OUT/curve.csv        all numbers of all steps; OUT/curve.png and OUT/tensorboard/ draw them

Everything that is known stands on disk: killed, the same command goes on. A run keeps only its newest checkpoints, so the oldest is
evaluated first; one that is deleted meanwhile is told, and missing in the curve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

from data_pipeline.errors import UserError, one_line
from data_pipeline.files import sha256_file, write_json
from sycoca_ds.engine.checkpoint.seal import STATE_FILE, damage, sealed, step_of
from sycoca_ds.engine.safety.status import read_status
from sycoca_ds.eval.datasets.reading import EXTENSIONS
from sycoca_ds.eval.report.curve import read_rows, write_curve
from sycoca_ds.eval.runner.bench import Resources
from sycoca_ds.evaluation.options import EvaluateConfig

WATCHED = "watched.json"
COMPLETED = "completed"
DEPTH = 3
"""Of folders within folders: DATA_ROOT/coco/annotations/captions_val2017.json."""
IRRELEVANT = (
    *("checkpoint", "watch", "watch_seconds", "out", "cache", "cache_gb"),
    *("batch_size", "device", "shard_weights", "tensorboard", "dry_run"),
)
"""Options that change no number: what is finished stays finished whatever they are."""


class Watch:
    """One run watched.

    Args:
        run: its folder; it may not be there yet.
        asked: the options, JSON values: what was evaluated with others is evaluated again.
        evaluate_step: (checkpoint's folder, where its results go) -> exit status; on every rank.
    """

    def __init__(
        self, run: Path, out: Path, asked: dict[str, Any], resources: Resources, evaluate_step: Callable[[Path, Path], int]
    ):
        self.run_folder, self.out, self.resources, self.evaluate_step = run, out, resources, evaluate_step
        self.asked = json.loads(json.dumps({name: value for name, value in asked.items() if name not in IRRELEVANT}))
        self.given_up: dict[str, str] = {}
        """{digest: why it cannot be evaluated}."""
        self.said = ""

    def run(self, seconds: float) -> int:
        """Until the run is completed and all its checkpoints are evaluated. On all ranks. Raises `UserError`."""
        status, team = 0, self.resources.team
        if seconds <= 0:
            raise UserError(f"--watch-seconds {seconds:g}: expected more than 0")
        while (folder := team.agree(lambda: self.next(seconds))) is not None:
            status = max(status, self.one(folder))
        return status

    def plan(self) -> str:
        """What would be done now, a line a checkpoint."""
        known = read_status(self.run_folder)
        lines = [f"{self.run_folder}, {told(known)}"]
        for folder in reversed(sealed(self.run_folder / "checkpoints")):
            done = self.finished(folder)
            lines.append(f"step {step_of(folder)}: {'evaluated' if done else 'would be evaluated'}, {self.place(folder)}")
        goes_on = "" if known.get("status") == COMPLETED else "then each new one, until the run is completed"
        return "\n".join([*lines, *([goes_on] if goes_on else [])])

    def next(self, seconds: float) -> Path | None:
        """The oldest checkpoint that is not evaluated; waits for it. None: the run is completed. On rank 0."""
        while True:
            known = read_status(self.run_folder)  # before the checkpoints: a completed run has its last one
            left = [folder for folder in reversed(sealed(self.run_folder / "checkpoints")) if not self.finished(folder)]
            if left:
                self.said = ""
                return left[0]
            if known.get("status") == COMPLETED:
                steps = sorted({row["step"] for row in read_rows(self.out)})
                print(f"watch: the run is completed, {len(steps)} of its checkpoints are evaluated", flush=True)
                return None
            self.say(f"watch: waiting for a checkpoint of {self.run_folder}, {told(known)}")
            sleep(seconds)

    def say(self, text: str) -> None:
        """Once, as long as it is so."""
        if text != self.said:
            print(text, flush=True)
            self.said = text

    def place(self, folder: Path) -> Path:
        return self.out / folder.name

    def finished(self, folder: Path) -> bool:
        """Also of one that is gone, or cannot be used."""
        try:
            digest = sha256_file(folder / STATE_FILE)
        except OSError:  # deleted since it was listed
            return True
        if digest in self.given_up:
            return True
        try:
            found = json.loads((self.place(folder) / WATCHED).read_text())
            return found["digest"] == digest and found["asked"] == self.asked
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def one(self, folder: Path) -> int:
        """Evaluates one, on all ranks; its status, or 0 if it was deleted or is damaged."""
        team = self.resources.team
        if team.leads:
            print(f"watch: step {step_of(folder)}", flush=True)
        digest = team.agree(lambda: digest_of(folder))
        try:
            if digest is None:
                raise UserError(f"{folder} is not there any more")
            status = self.evaluate_step(folder, self.place(folder))
        except Exception as error:
            why = team.agree(lambda: problem_of(folder, digest))
            if why is None:  # the checkpoint is as it was: something else is wrong
                raise
            if digest is not None:
                self.given_up[digest] = why
            if team.leads:
                print(f"watch: step {step_of(folder)} is left out, {why} ({one_line(error)})", flush=True)
            return 0
        if team.leads:
            write_json(self.place(folder) / WATCHED, {"digest": digest, "asked": self.asked, "status": status})
            write_curve(self.out)
            self.resources.cache.used.clear()
            self.resources.cache.trim()
        return status


def stamps_of(config: EvaluateConfig) -> dict[str, list[str]]:
    """{option: size and time of each file that it names}, so that a file of the same name with another content is another one. Of a
    folder its files down to `DEPTH`, pictures by the time of their folder alone."""
    named = {
        "data": [config.data],
        "data_root": [config.data_root],
        "labels": [config.labels],
        "regions": [config.regions],
        "compositions": [piece for text in config.compositions for piece in text.partition("=")[2].split(",")],
        "questions": (config.questions or "").split(","),
        "answers": config.answers,
        "probe_train": [config.probe_train],
        "probe_labels": [config.probe_labels],
        "prompts": [config.prompts],
        "beside": [text.split(",")[0] for text in config.beside],
    }
    return {name: [stamp for path in paths if path for stamp in _stamps(Path(path), DEPTH)] for name, paths in named.items()}


def _stamps(path: Path, deeper: int) -> Iterator[str]:
    """Nothing of what is not there, which is told by who opens it."""
    try:
        found = path.stat()
        is_folder = path.is_dir()
        below = sorted(path.iterdir()) if is_folder and deeper else []
    except OSError:
        return
    yield f"{path.name} {'' if is_folder else found.st_size} {found.st_mtime_ns}"
    for inner in below:
        if not inner.name.lower().endswith(EXTENSIONS):
            yield from _stamps(inner, deeper - 1)


def digest_of(folder: Path) -> str | None:
    try:
        return sha256_file(folder / STATE_FILE)
    except OSError:
        return None


def problem_of(folder: Path, digest: str | None) -> str | None:
    """Why a checkpoint could not be evaluated; None if nothing is wrong with it."""
    if digest is None or digest_of(folder) != digest:
        return "the run has deleted or replaced it"
    return damage(folder)


def told(status: dict[str, Any]) -> str:
    """What a run says of itself, in words."""
    if not status:
        return "which has not begun"
    return f"{status.get('status')} at step {status.get('step')} of {status.get('steps')}"
