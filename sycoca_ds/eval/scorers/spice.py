"""SPICE 1.0 (Anderson et al. 2016) by the jar in pycocoevalcap, with the jars of Stanford CoreNLP that the package lacks.

Called as pycocoevalcap/spice/spice.py calls it, but for the class path, since the jar looks beside itself, and for the cache: it
is what fails on Java 16 and newer, and is written into site-packages. Legend: I images.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.files import no_folder
from sycoca_ds.eval.scorers.caption_tokens import JAVA_FLAGS, java_command, java_version, package_folder

OPTION = "--spice-dir"
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CORENLP_FROM = "both are in stanford-corenlp-full-2015-12-09.zip (https://stanfordnlp.github.io/CoreNLP/history.html)"
ENGINE = "nashorn-core-*.jar"
"""A JavaScript engine, by which the jar writes its JSON."""
ENGINE_FROM = (
    "Java has no JavaScript engine since 15, and SPICE needs one: put nashorn-core-15.4.jar (org.openjdk.nashorn) there, and asm, "
    "asm-commons, asm-tree, asm-util and asm-analysis (org.ow2.asm), from https://repo1.maven.org, or run an older Java"
)
LAST_WITH_ENGINE = 14
OPENED = ("java.lang", "java.math", "java.text", "java.util", "java.util.concurrent", "java.net")
"""Packages of java.base that serialisation looks into, which Java 16 and newer forbid otherwise."""
SECONDS, SECONDS_AN_IMAGE = 600, 3
"""Until it is stopped; it parses every caption."""


def java_release() -> int | None:
    """8, 11, 17; None: there is no Java, or it does not say."""
    found = re.search(r'"(?:1\.)?(\d+)', java_version() or "")
    return int(found[1]) if found else None


def spice_jars(folder: str | Path) -> list[Path]:
    """The jars in a folder of `--spice-dir`. Raises `UserError` naming those that it lacks."""
    place, release = Path(folder), java_release()
    if not place.is_dir():
        raise UserError(f"{OPTION} {folder}: {no_folder(folder)}; expected one with {' and '.join(CORENLP)}: {CORENLP_FROM}")
    missing = [name for name in CORENLP if not (place / name).is_file()]
    if missing:
        raise UserError(f"{OPTION} {folder}: {' and '.join(missing)} not there; {CORENLP_FROM}")
    if release is not None and release > LAST_WITH_ENGINE and not list(place.glob(ENGINE)):
        raise UserError(f"{OPTION} {folder}: {ENGINE} not there, with Java {release}; {ENGINE_FROM}")
    return sorted(path.absolute() for path in place.glob("*.jar"))


def float_or_nan(value: object) -> float:
    """The official `float_convert`: null is NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


class Spice:
    """F-scores of captions: a picture's does not depend on the others, so none is asked for twice.

    Attributes:
        starts: of Java.
    """

    def __init__(self, folder: str | Path):
        """Raises `UserError`: a jar that is not there."""
        self.jars, self.starts = spice_jars(folder), 0
        self._known: dict[tuple[str, ...], float] = {}

    def score(
        self,
        reference_table: Mapping[str, list[str]],
        hypothesis_table: Mapping[str, list[str]],
        timeout: float | None = None,
    ) -> tuple[float, np.ndarray]:
        """(mean over the images, NaN where one is; F-score of each image (I,)).

        Args:
            timeout: seconds until it is stopped, default by size.

        Raises:
            RuntimeError: it ended with an error, took too long, or did not answer as it should.
        """
        asked_I = [(*hypothesis_table[image_id], *references) for image_id, references in reference_table.items()]
        new = [asked for asked in dict.fromkeys(asked_I) if asked not in self._known]
        if new:
            self._known |= zip(new, self._run(new, timeout or SECONDS + SECONDS_AN_IMAGE * len(new)), strict=True)
        f_I = np.array([self._known[asked] for asked in asked_I])
        return float(f_I.mean()), f_I

    def _run(self, asked: list[tuple[str, ...]], timeout: float) -> list[float]:
        self.starts += 1
        package = package_folder() / "spice"
        path = [package / "spice-1.0.jar", *sorted((package / "lib").glob("*.jar")), *self.jars]
        with tempfile.TemporaryDirectory() as place:
            given, out = Path(place) / "given.json", Path(place) / "out.json"
            given.write_text(json.dumps([{"image_id": n, "test": said, "refs": refs} for n, (said, *refs) in enumerate(asked)]))
            command = [java_command() or "java", *JAVA_FLAGS, "-Xmx8G", "-cp", os.pathsep.join(map(str, path))]
            command += ["edu.anu.spice.SpiceScorer", str(given), "-out", str(out), "-subset", "-silent"]
            opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED]
            # read by Java 9 and newer alone; as arguments they would stop Java 8, which needs none
            environment = os.environ | {"JDK_JAVA_OPTIONS": " ".join([os.environ.get("JDK_JAVA_OPTIONS", ""), *opened]).strip()}
            try:
                done = subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=timeout, check=False)
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"it was stopped after {timeout:,.0f} seconds") from error
            try:
                scores = {row["image_id"]: float_or_nan(row["scores"]["All"]["f"]) for row in json.loads(out.read_bytes())}
                return [scores[n] for n in range(len(asked))]
            except (OSError, ValueError, KeyError, TypeError) as error:
                said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line[:1].strip()]
                raise RuntimeError(f"it ended with status {done.returncode}: {said[-1] if said else error}") from error
