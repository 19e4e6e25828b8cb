"""`--dry-run`: how long an evaluation on sets will take, from batches measured on this device and from how much the sets hold.

A batch of each kind of question is asked twice, of drawn pictures of the usual size, and the second one is timed, with the decoding
of its pictures: by all ranks together, as in the evaluation itself. What rank 0 does alone is counted by rates that stand below.
Tasks of several passes of their own are tried on a few of a folder's pictures (trials.py).
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from data_pipeline.progress import format_seconds
from sycoca_ds.config import ModelConfig
from sycoca_ds.eval.collection import Picture, PictureSet
from sycoca_ds.eval.datasets.evaluation import Asked, tasks_of
from sycoca_ds.eval.datasets.names import labels_of
from sycoca_ds.eval.datasets.reading import Absent
from sycoca_ds.eval.datasets.registry import OfficialSet
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.probe.fitting import fit
from sycoca_ds.eval.runner.bench import Bench, ImageFeatures, Inputs, Resources, TextFeatures
from sycoca_ds.eval.runner.team import Work
from sycoca_ds.eval.tasks.captioning import Captions, decoding_of
from sycoca_ds.eval.tasks.linear_probe import FITS
from sycoca_ds.eval.vqa.items import OFFICIAL
from sycoca_ds.evaluation.trials import trials

USUAL_SIDES = (640, 480)
"""Pixels of a picture of COCO."""
TEMPLATES = 80
"""Of a set of classes that is not here, as ImageNet's."""
CAPTIONS_SECONDS, CAPTION_SECONDS = 12.0, 0.006
"""Of scoring: the start of both Java programs, and a picture by all scorers (METEOR 3.4 ms, CIDEr and BLEU 1.5 ms, PTB 0.3 ms;
4,989 pictures on 2 cores)."""
MEAN_ITERATIONS = 250
"""Of a fit of a linear probe: between 20 at small C and the bound of 1,000 at large ones."""
FITTED_ROWS, FITTED_ITERATIONS = 2048, 4
"""On so many drawn vectors an iteration is measured."""
PASSES_OF_QUESTIONS = 3
"""Right picture, another one, none."""


class Drawn(PictureSet):
    """As many pictures as are asked for, all alike."""

    def __init__(self, count: int, image_size: int):
        from PIL import Image

        noise = np.random.default_rng(0).integers(0, 256, (USUAL_SIDES[1] // 8, USUAL_SIDES[0] // 8, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).resize(USUAL_SIDES).save(stream, format="JPEG", quality=90)
        self._jpeg = stream.getvalue()
        pictures = [Picture(str(number), str(number), str(number)) for number in range(count)]
        super().__init__(".", image_size, "drawn", pictures, ["a picture of something"] * count, range(count))

    def pixels(self, number: int) -> np.ndarray:
        from sycoca_ds.data.transforms import load_image

        return load_image(self._jpeg)


@dataclass(frozen=True)
class Rates:
    """Seconds that all ranks together need."""

    image: float
    text: float
    caption: float | None
    """None: the model writes none."""
    width: int
    """Of an image's features."""
    iteration: float
    """Of a fit, a row and class: on rank 0 alone."""


@dataclass(frozen=True)
class Part:
    """One task on one set."""

    name: str
    task: str
    """Or the split whose captions or answers are for a server."""
    counted: str
    """What there is of it, in words."""
    official: bool
    """The set is not here, and counted as its page says."""
    seconds: float


def measure(loaded: Any, options: SuiteOptions, device: Any, resources: Resources) -> Rates | None:
    """Rates on this device, by all ranks. None on ranks other than 0, which answer."""
    team, size = resources.team, options.batch_size * resources.team.size
    collection = Drawn(size, loaded.config.model.image.image_size)
    bench = Bench(loaded.model, loaded.config, loaded.tokenizer, collection, device, Inputs(options), resources)
    if not team.leads:
        team.serve(bench)
        return None

    def seconds(work: Work, what: str) -> float:
        for _ in range(2):
            start = time.perf_counter()
            bench.map(work, size, f"measure: {what}", "samples")
            took = time.perf_counter() - start
        return took / size

    with team.conducting():
        image, text = seconds(ImageFeatures(), "look at images"), seconds(TextFeatures(collection.captions), "read texts")
        caption = seconds(Captions(**decoding_of(bench)), "write captions") if loaded.config.model.captions else None
        width = bench.map(ImageFeatures(), 1, "measure: width", "samples")["feature"].shape[1]
    return Rates(image, text, caption, width, _iteration(width))


def _iteration(width: int) -> float:
    """Seconds that an iteration of a fit takes a row and class."""
    random, classes = np.random.default_rng(0), 10
    rows, label = random.standard_normal((FITTED_ROWS, width)), random.integers(0, classes, FITTED_ROWS)
    start = time.perf_counter()
    iterations = fit(rows, label, 1.0).iterations
    return (time.perf_counter() - start) / (max(1, iterations) * FITTED_ROWS * classes)


def parts(entry: OfficialSet, asked: Asked, tasks: Sequence[str], rates: Rates, beams: int) -> list[Part]:
    """What each task of a set takes."""
    count, prompts, official = counts_of(entry, asked, entry.evaluated)
    fitted = sum(counts_of(entry, asked, split)[0]["pictures"] for split in entry.fitted) if "linear_probe" in tasks else 0
    return parts_of(entry.name, tasks, count, prompts, fitted, official, rates, beams)


def parts_of_folder(data: PictureSet, inputs: Inputs, model: ModelConfig, rates: Rates) -> list[Part]:
    """What each task takes on a data set folder of those that have rates and can be run on it."""
    labels, options, most = inputs.labels, inputs.options, inputs.options.captions_per_image
    there = {
        "classification": labels is not None,
        "linear_probe": inputs.probe is not None,
        "vqa": inputs.questions is not None and model.fusion,
    }
    tasks = [task for task in options.tasks if there.get(task, True)]
    count = {
        "pictures": len(data),
        "captions": sum(min(len(own), most or len(own)) for own in data.captions_of_image),
        "classes": len(labels.classes) if labels else 0,
        "questions": len(inputs.questions.table) if inputs.questions else 0,
    }
    prompts, fitted = len(labels.templates) if labels else 0, len(inputs.probe.train.pictures) if inputs.probe else 0
    return parts_of(data.folder.absolute().name, tasks, count, prompts, fitted, False, rates, options.beams)


def parts_of(
    name: str,
    tasks: Sequence[str],
    count: Mapping[str, int | None],
    prompts: int,
    fitted: int,
    official: bool,
    rates: Rates,
    beams: int,
) -> list[Part]:
    """What each task takes on so much.

    Args:
        count: pictures, captions, classes and questions. prompts: templates. fitted: pictures that a linear probe is trained on.
    """
    found = []

    def add(task: str, counted: str, seconds: float) -> None:
        found.append(Part(name, task, counted, official, seconds))

    images, captions, classes = count["pictures"], count["captions"] or 0, count["classes"] or 0
    looked = images * rates.image
    if "retrieval" in tasks:
        add("retrieval", f"{images:,} images, {captions:,} captions", looked + captions * rates.text)
    if "classification" in tasks:
        add("classification", f"{images:,} images, {classes * prompts:,} prompts", looked + classes * prompts * rates.text)
    if "captioning" in tasks and rates.caption is not None:
        scoring = CAPTIONS_SECONDS + images * CAPTION_SECONDS
        add("captioning", f"{images:,} images", images * rates.caption + scoring)
    if "association" in tasks:
        questions = count["questions"] or 0
        add("association", f"{images:,} images, {questions:,} questions", looked + questions * rates.text)
    if "linear_probe" in tasks:
        fits = (FITS + 2) * MEAN_ITERATIONS * fitted * classes * rates.iteration
        add("linear_probe", f"{images + fitted:,} images, {FITS + 2} fits", (images + fitted) * rates.image + fits)
    if "vqa" in tasks and rates.caption is not None:
        questions = count["questions"] or 0
        add("vqa", f"{questions:,} questions", PASSES_OF_QUESTIONS * questions * (rates.image + rates.caption / beams))
    return found


def submitted(entry: OfficialSet, asked: Asked, split: str, rates: Rates, beams: int) -> Part:
    """What captions or answers for a set's server take; they are not scored here."""
    count, _, official = counts_of(entry, asked, split)
    if entry.tasks == ("vqa",):
        questions = count["questions"] or 0
        return Part(
            entry.name, split, f"{questions:,} questions to answer", official, questions * (rates.image + rates.caption / beams)
        )
    return Part(entry.name, split, f"{count['pictures']:,} images to caption", official, count["pictures"] * rates.caption)


def counts_of(entry: OfficialSet, asked: Asked, split: str) -> tuple[dict[str, int | None], int, bool]:
    """(pictures, captions, classes and questions; templates; whether these are the official numbers): of the set's lists, if it is
    here."""
    from sycoca_ds.eval.datasets.check import count_of

    try:
        root, read = entry.open(asked.data_root, split)
    except UserError as error:
        if not isinstance(error, Absent):
            raise
        official = entry.counts[split]
        found = {name: getattr(official, name) for name in ("pictures", "captions", "classes")}
        return {**found, "pictures": found["pictures"] or 0, "questions": OFFICIAL.get(split)}, TEMPLATES, True
    own = count_of(read)
    templates = TEMPLATES
    if read.label_N is not None and split == entry.evaluated and "classification" in entry.tasks:
        templates = len(labels_of(entry, root, read, asked.data_root, asked.prompts.get(entry.name))[0].templates)
    questions = read.asked.count if read.asked else len(read.questions) or None
    return {"pictures": own.pictures, "captions": own.captions, "classes": own.classes, "questions": questions}, templates, False


def dry_run(loaded: Any, asked: Asked, out: Path, options: SuiteOptions, device: Any, resources: Resources) -> int:
    """Tells what an evaluation would take and writes OUT/estimate.json; nothing is evaluated. 0."""
    rates = measure(loaded, options, device, resources)
    if rates is None:
        return 0
    found: list[Part] = []
    refused: dict[str, str] = {}
    for entry in asked.entries:
        tasks = tasks_of(entry, options)
        if tasks == ("vqa",) and not loaded.config.model.fusion:
            continue
        try:
            found += parts(entry, asked, tasks, rates, options.beams)
        except UserError as error:  # the evaluation would go on without this set, too
            refused[entry.name] = str(error)
    for entry in asked.submissions if rates.caption is not None else ():
        if entry.tasks == ("vqa",) and not loaded.config.model.fusion:
            continue
        for split in entry.submitted:
            try:
                found.append(submitted(entry, asked, split, rates, options.beams))
            except UserError as error:
                refused[f"{entry.name}, {split}"] = str(error)
    tell(found, refused, rates, out, options, device, resources)
    if any(part.official for part in found):
        print(f"dry run: sets that are not in {asked.data_root} are counted as their pages say")
    return 0


def dry_run_folder(loaded: Any, collection: PictureSet, inputs: Inputs, out: Path, device: Any, resources: Resources) -> int:
    """The same for a data set folder."""
    rates = measure(loaded, inputs.options, device, resources)
    tried = list(trials(loaded, collection, inputs, device, resources))
    if rates is None:
        return 0
    found, name = parts_of_folder(collection, inputs, loaded.config.model, rates), collection.folder.absolute().name
    found += [Part(name, trial.task, trial.counted, False, trial.seconds) for trial in tried if not trial.reason]
    tell(
        found,
        {f"{name}, {trial.task}": trial.reason for trial in tried if trial.reason},
        rates,
        out,
        inputs.options,
        device,
        resources,
    )
    return 0


def tell(
    found: Sequence[Part],
    refused: Mapping[str, str],
    rates: Rates,
    out: Path,
    options: SuiteOptions,
    device: Any,
    resources: Resources,
) -> None:
    """A line a part, and their sum; OUT/estimate.json."""
    total = sum(part.seconds for part in found)
    for part in found:
        print(f"{part.name:14} {part.task:14} {format_seconds(part.seconds):>9}  {part.counted}{', officially' * part.official}")
    for name, why in refused.items():
        print(f"{name:14} no numbers: {why}")
    ranks, device_name = resources.team.size, str(device.type)
    print(
        f"dry run: {total / 3600:.2f} hours on {ranks} rank{'s' * (ranks != 1)} ({device_name}, {options.precision}, batches of "
        f"{options.batch_size}): {1 / rates.image:,.1f} images and {1 / rates.text:,.0f} texts a second"
        + (f", {1 / rates.caption:,.1f} captions" if rates.caption else "")
    )
    write_json(out / "estimate.json", _record(found, refused, rates, ranks, device_name, options))


def _record(
    found: Sequence[Part], refused: Mapping[str, str], rates: Rates, ranks: int, device: str, options: SuiteOptions
) -> Mapping[str, Any]:
    return {
        "seconds": sum(part.seconds for part in found),
        "ranks": ranks,
        "device": device,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "rates": {name: getattr(rates, name) for name in Rates.__dataclass_fields__},
        "no_numbers": dict(refused),
        "parts": [{name: getattr(part, name) for name in Part.__dataclass_fields__} for part in found],
    }
