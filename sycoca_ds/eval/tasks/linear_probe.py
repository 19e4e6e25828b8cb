"""Linear probe: a linear classifier on frozen features of the image encoder, which says how much of the classes lies open in them.

Protocol: CLIP (Radford et al. 2021), A.3. C is chosen on validation pictures, the classifier fitted again on training and
validation pictures together, and tested once. Legend: N pictures, I those of the evaluation, K classes.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
import torch

from data_pipeline.progress import Progress
from sycoca_ds.eval.probe.data import HELD_OUT, Labelled, ProbeData, held_out, shared
from sycoca_ds.eval.probe.features import Known, known
from sycoca_ds.eval.probe.fitting import GRID, MOST_ITERATIONS, fit, needs_sklearn, search
from sycoca_ds.eval.probe.scoring import accuracies, bounds, chances, each_class
from sycoca_ds.eval.runner.bench import Bench, Inputs, digest_of_texts
from sycoca_ds.eval.stats.classes import confusions, own_class_ranks
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording, with_bounds

FITS = 15
"""Of a search that ends within the grid."""


def parts(bench: Bench) -> tuple[Known, Known, str]:
    """Features to train on, features to validate on, and which pictures the latter are. Raises `NotApplicable`."""
    probe = bench.inputs.probe
    train = known(bench, probe.train)
    if probe.validation is not None:
        part, chosen, how = train, known(bench, probe.validation), f"the set's {probe.validation.name} split"
    else:
        away = held_out(train.label_N, bench.options.seed)
        part, chosen = train.only(~away), train.only(away)
        how = f"one in {HELD_OUT} training pictures of each class, drawn by seed {bench.options.seed}"
    if not len(chosen):
        raise NotApplicable("no picture is left to choose C on: no class has two training pictures")
    if len(np.unique(part.label_N)) < 2:
        raise NotApplicable("the training pictures show fewer than two classes")
    return part, chosen, how


def sweep(bench: Bench, train: Known, validation: Known, classes: int, primary: str) -> tuple[float, list[dict[str, Any]]]:
    """The best C, and a row for each that was tried: c, validation (percent), iterations, converged. Each is kept as soon as it is
    fitted."""
    digests = {"train": train.digest(), "validation": validation.digest(), "classes": classes, "primary": primary}
    entry = bench.entry({"what": "fits of a linear probe", **digests, "scikit-learn": sklearn_version()})
    rows = {int(place[0]): {name: value[0].item() for name, value in row.items()} for place, row in entry.load()}
    with Progress("choose C", total=FITS, unit="fits") as bar:

        def score(place: int) -> float:
            said = f"C {GRID[place]:.3g}"
            if place not in rows:
                fitted = fit(train.feature_ND, train.label_N, GRID[place], lambda done: bar.note(f"{said}: iteration {done}"))
                right = accuracies(fitted.logits(validation.feature_ND, classes), validation.label_N)[primary]
                row = {"c": GRID[place], "validation": right, "iterations": fitted.iterations, "converged": fitted.converged}
                entry.add(np.array([place]), {name: np.array([value]) for name, value in row.items()})
                entry.flush()
                rows[place] = row
            bar.note(f"{said}: {rows[place]['validation']:.1f} %")
            bar.advance()
            return rows[place]["validation"]

        best, _ = search(score)
    return GRID[best], [rows[place] for place in sorted(rows)]


def run_linear_probe(bench: Bench) -> Outcome:
    """Accuracy on the evaluated pictures that have a class."""
    labels, probe, seed = bench.inputs.labels, bench.inputs.probe, bench.options.seed
    if probe is None:
        raise NotApplicable("no --probe-train FOLDER was given")
    needs_sklearn()
    label_I = labels.of([picture.url for picture in bench.collection.pictures])
    classes = len(labels.classes)
    part, validation, how = parts(bench)
    test = known(bench, Labelled("test", bench.collection, label_I, labels.digest))
    c, rows = sweep(bench, part, validation, classes, labels.primary)
    train = part.and_then(validation)
    with Progress("fit on training and validation images", total=2, unit="fits") as bar:
        fitted = fit(train.feature_ND, train.label_N, c, lambda done: bar.note(f"iteration {done}"))
        bar.advance()
        mixed_N = np.random.default_rng(seed).permutation(train.label_N)
        control = fit(train.feature_ND, mixed_N, c, lambda done: bar.note(f"labels shuffled: iteration {done}"))
        bar.advance()
    logit_NK = fitted.logits(test.feature_ND, classes)
    numbers = accuracies(logit_NK, test.label_N)
    shuffled = accuracies(control.logits(test.feature_ND, classes), test.label_N)
    guess_N = logit_NK.argmax(axis=1)
    right_N = guess_N == test.label_N
    numbers |= bounds(right_N, test.label_N, seed)
    numbers |= {f"{name}_shuffled": shuffled[name] for name in ("top1", "mean_per_class")}
    numbers["validation"] = next(row["validation"] for row in rows if row["c"] == c)
    numbers["train_top1"] = accuracies(fitted.logits(train.feature_ND, classes), train.label_N)["top1"]
    chance = chances(train.label_N, test.label_N, classes)
    chance |= {f"{name}_shuffled": chance[name] for name in ("top1", "mean_per_class")}
    there = label_I >= 0
    guess_I, (top1_I, top5_I, class_I) = np.full(len(label_I), -1), np.full((3, len(label_I)), np.nan)
    guess_I[there], top1_I[there], class_I[there] = guess_N, 100.0 * right_N, test.label_N
    if numbers["top5"] is not None:
        top5_I[there] = 100.0 * (own_class_ranks(torch.from_numpy(logit_NK), test.label_N) < 5)
    details = {
        "set": labels.name,
        "features": bench.options.probe_features,
        "width": int(train.feature_ND.shape[1]),
        "classes": classes,
        "images": len(test),
        "images_without_label": int((~there).sum()),
        "train_images": len(part),
        "validation_images": len(validation),
        "validated_on": how,
        "primary": labels.primary,
        "c": c,
        "sweep": rows,
        "iterations": fitted.iterations,
        "converged": fitted.converged,
        "interval": HOW,
        "labels_digest": labels.digest,
        "fitted_on_digest": digest_of_texts(probe_digests(probe)),
        "each_class": each_class(right_N, test.label_N, train.label_N, labels.classes),
        "confusions": confusions(test.label_N, guess_N, labels.classes),
    }
    details["told"] = [
        f"linear probe: C = {c:.3g}, best of {len(rows)} on {len(validation):,} images ({how}); fitted on {len(train):,} images, "
        f"{details['width']} features each ({details['features']})",
        *notes(bench, details),
    ]
    reasons = {"top5": f"only {classes} classes"} if numbers["top5"] is None else {}
    files = {"linear_probe.npz": {"label": label_I, "guess": guess_I, "logit": logit_NK.astype(np.float32)}}
    return Outcome(numbers, reasons, chance, details, files, each={"top1": top1_I, "top5": top5_I, "class": class_I})


def probe_digests(probe: ProbeData) -> list[str | None]:
    """Of the pictures with classes that it is fitted on."""
    return [probe.train.digest, probe.validation.digest if probe.validation else None]


def notes(bench: Bench, details: dict[str, Any]) -> list[str]:
    """What makes the numbers weaker than they look, a line each."""
    probe, rows, found = bench.inputs.probe, details["sweep"], []
    if details["c"] in (GRID[0], GRID[-1]):
        found.append(f"the best C lies at the edge of what is tried, {GRID[0]:g} to {GRID[-1]:g}: a better one may lie beyond")
    if not details["converged"]:
        found.append(f"L-BFGS did not converge in {MOST_ITERATIONS:,} iterations: the last fit is not the best one at this C")
    early = [f"{row['c']:.3g}" for row in rows if not row["converged"]]
    if early:
        found.append(f"{len(early)} of {len(rows)} fits on the way to C did not converge (C = {', '.join(early)})")
    untaught = [row["class"] for row in details["each_class"] if row["test"] and not row["train"]]
    if untaught:
        found.append(f"{len(untaught)} tested classes have no training picture, so that nothing of them is right: {untaught[0]}")
    given = [probe.train, *([probe.validation] if probe.validation else [])]
    twice = shared(given, bench.collection)
    if twice:
        found.append(f"{twice:,} tested pictures are among those to train on: the numbers are too good")
    bare = sum(int((labelled.label_I < 0).sum()) for labelled in given)
    if bare:
        found.append(f"{bare:,} training pictures have no label and are left out")
    return found


def sklearn_version() -> str | None:
    try:
        return metadata.version("scikit-learn")
    except metadata.PackageNotFoundError:
        return None


def depends(inputs: Inputs) -> dict[str, Any]:
    """scikit-learn's version, too: when L-BFGS stops is its affair."""
    probe = inputs.probe
    if probe is None:
        return {"probe": None}
    return {
        "probe": probe_digests(probe),
        "labels": inputs.labels.digest,
        "features": inputs.options.probe_features,
        "scikit-learn": sklearn_version(),
    }


TASK = Task(
    name="linear_probe",
    title="Linear probe",
    meaning="The image encoder stays as it is. On its features of training pictures a linear classifier learns the classes, and is "
    "tested on pictures that it has not seen.",
    numbers={
        **with_bounds(
            {
                "top1": Wording("Top-1 accuracy", "%", "{images} test images whose own class, of {classes}, scores highest"),
                "top5": Wording("Top-5 accuracy", "%", "test images whose own class is among the five highest"),
                "mean_per_class": Wording(
                    "Mean per class", "%", "top-1 within each class, averaged over the classes that have a test image"
                ),
            },
            lambda name: name != "top5",
        ),
        "top1_shuffled": Wording(
            "Top-1, labels shuffled",
            "%",
            "control: the same features and C, but training labels mixed among the images. Near chance",
            control=True,
        ),
        "mean_per_class_shuffled": Wording("Mean per class, labels shuffled", "%", "the same control", control=True),
        "validation": Wording(
            "On validation images", "%", "at the C that was chosen for being best there, by the set's own metric"
        ),
        "train_top1": Wording("Top-1 on training images", "%", "of the last fit, on the images it was fitted on"),
    },
    headlines=("top1", "mean_per_class", "top1_shuffled"),
    run=run_linear_probe,
    files=("linear_probe.npz",),
    each=True,
    depends=depends,
)
