"""Scores of generated captions: the official COCO scorers (pycocoevalcap), assembled here.

COCOEvalCap is not used: it sets up SPICE, which downloads 384 MB, before it scores anything.
Scale: BLEU, METEOR, ROUGE-L from 0 to 1 and CIDEr (CIDEr-D) from 0 to 10; papers print all of them times 100.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import UserError, how_to_install
from sycoca_ds.eval.scorers.caption_tokens import JAVA_FLAGS, java_command, package_folder, tokenize
from sycoca_ds.eval.scorers.corpus import bleu_statistics, meteor_rows
from sycoca_ds.eval.scorers.spice import Spice

Numbers = dict[str, float | None]
DOMAINS = ("in-domain", "near-domain", "out-domain")
"""Of NoCaps: what its pictures show is named in COCO's captions, partly, not at all."""
NO_SPICE = "SPICE needs Stanford CoreNLP 3.6.0, which is not part of the pycocoevalcap package: --spice-dir FOLDER with its jars"
WORDLESS = "no reference holds a word, and CIDEr weighs words by the references that hold them"


def domain_prefix(domain: str) -> str:
    """Of a domain's numbers."""
    return f"{domain.replace('-', '_')}_"


def token_tables(
    hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]], str]:
    """(references, hypotheses, tokenizer kind), both {image_id: [tokens joined by blanks]} in one order, as the scorers
    want them.

    Raises ValueError naming images that are on one side only, and images without a reference.
    """
    extra, missing = sorted(set(hypotheses) - set(references)), sorted(set(references) - set(hypotheses))
    if extra or missing:
        raise ValueError(
            f"captions and references must cover the same images: {len(missing)} without a caption {missing[:3]}, "
            f"{len(extra)} without references {extra[:3]}"
        )
    bare = [image_id for image_id, captions in references.items() if not captions]
    if bare:
        raise ValueError(f"{len(bare)} images have no reference caption, the first is {bare[0]}")
    flat = [caption for captions in references.values() for caption in captions] + [hypotheses[image_id] for image_id in references]
    tokens, kind = tokenize(flat)
    stream = iter(tokens)
    reference_table = {image_id: [next(stream) for _ in captions] for image_id, captions in references.items()}
    return reference_table, {image_id: [next(stream)] for image_id in references}, kind


def corpus_scores(
    reference_table: Mapping[str, list[str]], hypothesis_table: Mapping[str, list[str]]
) -> tuple[Numbers, np.ndarray]:
    """BLEU-1..4 (corpus, closest reference length) and ROUGE-L (mean); ROUGE-L of each image, (I,). UserError without
    pycocoevalcap."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise UserError(f"captioning: {error}; {how_to_install('eval')} brings it") from error
    bleu, _ = Bleu(4).compute_score(reference_table, hypothesis_table, verbose=0)
    numbers: Numbers = {f"bleu{n}": float(score) for n, score in enumerate(bleu, 1)}
    numbers["rouge_l"], rouge_I = Rouge().compute_score(reference_table, hypothesis_table)
    numbers["rouge_l"] = float(numbers["rouge_l"])
    return numbers, np.asarray(rouge_I, dtype=np.float64)


def _mean(scores_I: np.ndarray | None) -> float | None:
    return None if scores_I is None else float(np.mean(scores_I))


def cider_scores(reference_table: Mapping[str, list[str]], hypothesis_table: Mapping[str, list[str]]) -> np.ndarray | None:
    """CIDEr-D of each image, in the tables' order, (I,); that of the corpus is their mean. 0 for a set of one image: its IDF is
    log(1) = 0. None where no reference holds a token: the package takes the maximum of no document frequency and fails."""
    from pycocoevalcap.cider.cider import Cider

    if not any(tokens.split() for references in reference_table.values() for tokens in references):
        return None
    return np.asarray(Cider().compute_score(reference_table, hypothesis_table)[1], dtype=np.float64)


class Meteor:
    """METEOR 1.5 by the jar in pycocoevalcap, one process for any number of corpora: its start takes seconds, most of them for the
    table of paraphrases. A context manager; the process starts when it is first asked, and again after it was stopped.

    The conversation of pycocoevalcap/meteor/meteor.py (a SCORE line an image, then one EVAL line), with an end: a JVM
    that dies or hangs gives RuntimeError with its last words instead of a read that never returns.

    Attributes:
        starts: of the process.
    """

    def __init__(self) -> None:
        self.starts = 0
        self._process: subprocess.Popen | None = None
        self._errors = tempfile.TemporaryFile()
        self._known: dict[str, str] = {}

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._errors.close()

    def score(
        self,
        reference_table: Mapping[str, list[str]],
        hypothesis_table: Mapping[str, list[str]],
        timeout: float | None = None,
    ) -> tuple[float, np.ndarray]:
        """The score of the corpus (from summed statistics, not the mean of items), and the statistics of each image, (I, 23). Those
        of images that were asked before are not computed again.

        Args:
            timeout: seconds until it is stopped, default by size.
        """
        process = self._running()
        watchdog = threading.Timer(timeout or 120 + len(reference_table) / 20, process.kill)
        watchdog.start()
        try:
            statistics = []
            for image_id, references in reference_table.items():
                line = " ||| ".join(["SCORE", *references, *hypothesis_table[image_id]])
                if line not in self._known:
                    self._known[line] = self._ask(line)
                statistics.append(self._known[line])
            # EVAL answers with a line for every image, then one for the corpus
            answer = [self._ask("EVAL ||| " + " ||| ".join(statistics))]
            answer += [self._answer() for _ in statistics]
            rows = meteor_rows([[float(word) for word in line.split()] for line in statistics])
            return float(answer[-1]), rows
        except (OSError, ValueError) as error:
            self._stop()
            self._known.clear()
            self._errors.seek(0)
            said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
            raise RuntimeError(f"METEOR stopped early: {said[-1] if said else error}") from error
        finally:
            watchdog.cancel()

    def _running(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            # -Duser.language: under a locale with decimal commas the jar cannot read its own parameters
            # (InputMismatchException)
            command = [java_command() or "java", *JAVA_FLAGS, "-Xmx2G", "-jar", "meteor-1.5.jar"]
            command += ["-", "-", "-stdio", "-l", "en", "-norm"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            self._process = subprocess.Popen(command, cwd=package_folder() / "meteor", **pipes)
            self.starts += 1
        return self._process

    def _ask(self, line: str) -> str:
        self._process.stdin.write((line + "\n").encode())
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise OSError("it ended")
        return line.decode().strip()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.stdout.close()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None


def rolled(table: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The hypothesis of every image handed to the next one: a caption generator that ignores the image would not lose
    by it."""
    keys = list(table)
    return {key: table[keys[position - 1]] for position, key in enumerate(keys)}


class Scores(NamedTuple):
    """What captions come to."""

    numbers: Numbers
    reasons: dict[str, str]
    """{number that is null: reason}."""
    tokenizer: str
    each: dict[str, np.ndarray]
    """In the order of the references: `cider` (CIDEr-D), `cider_shuffled`, `rouge_l` and, where it was asked for, `spice` of each
    image, (I,), NaN where there is none; `bleu_statistics` and, with Java, `meteor_statistics`, whose sums make the corpus' scores
    (scorers/corpus.py)."""
    failed: bool
    """A Java program did: another time it may not."""


def score_captions(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """hypotheses: one caption an image_id. references: all captions of each image_id, at least one. Either may be empty or
    without a word. Same keys. `cider_shuffled` is the control: the same hypotheses, each judged against the next image's
    references.
    """
    if not references:
        raise ValueError("no image to score")
    with Meteor() as meteor:
        return score_tables(*token_tables(hypotheses, references), meteor)


def score_tables(
    reference_table: dict[str, list[str]],
    hypothesis_table: dict[str, list[str]],
    kind: str,
    meteor: Meteor,
    spice: Spice | None = None,
) -> Scores:
    """The same of what `token_tables` returns, or of some of its images: these are then the whole corpus, whose document
    frequencies CIDEr weighs by, as when COCOEvalCap is given their annotations only."""
    (numbers, rouge_I), reasons = corpus_scores(reference_table, hypothesis_table), {}
    each = {"rouge_l": rouge_I, "bleu_statistics": bleu_statistics(reference_table, hypothesis_table)}
    cider_I = cider_scores(reference_table, hypothesis_table)
    numbers["cider"] = _mean(cider_I)
    shuffled_I = cider_scores(reference_table, rolled(hypothesis_table))
    numbers["cider_shuffled"] = _mean(shuffled_I)
    reasons |= {name: WORDLESS for name in ("cider", "cider_shuffled") if numbers[name] is None}
    failed = False
    for name, program, left in (("meteor", meteor, "meteor_statistics"), ("spice", spice, "spice")):
        numbers[name] = None
        if program is None:
            reasons[name] = NO_SPICE
        elif java_command() is None:
            reasons[name] = f"{name.upper()} is a Java program and `java` was not found on PATH"
        else:
            try:
                numbers[name], each[left] = program.score(reference_table, hypothesis_table)
            except (RuntimeError, OSError) as error:
                reasons[name], failed = f"{name.upper()} failed: {error}", True
    words = [len(hypothesis[0].split()) for hypothesis in hypothesis_table.values()]
    numbers["mean_words"] = math.fsum(words) / len(words)
    numbers["distinct"] = 100.0 * len({hypothesis[0] for hypothesis in hypothesis_table.values()}) / len(words)
    for name, value_I in (("cider", cider_I), ("cider_shuffled", shuffled_I)):
        each[name] = np.full(len(reference_table), np.nan) if value_I is None else value_I
    return Scores(numbers, reasons, kind, each, failed)


def score_groups(
    reference_table: dict[str, list[str]],
    hypothesis_table: dict[str, list[str]],
    kind: str,
    groups: Mapping[str, str],
    meteor: Meteor,
    spice: Spice | None = None,
) -> dict[str, Scores]:
    """{group: scores of its images alone}.

    Args:
        groups: {image_id: its group} of every image in the tables.
        meteor, spice: know of images that they were asked of before, in another group or in all.
    """
    found = {}
    for group in sorted(set(groups.values())):
        mine = [image_id for image_id in reference_table if groups[image_id] == group]
        tables = ({image_id: table[image_id] for image_id in mine} for table in (reference_table, hypothesis_table))
        found[group] = score_tables(*tables, kind, meteor, spice)
    return found
