"""Zero-shot classification: names of classes put into templates are the classifier.

Legend: I images, N of them labelled, K classes, E embedding width. Protocol: stats/classes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.runner.bench import Bench, digest_of_texts
from sycoca_ds.eval.stats.classes import (
    class_rows,
    class_scores,
    class_weights,
    classification_metrics,
    confusions,
    macro_f1,
    own_class_ranks,
    worst_group,
)
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording


def run_classification(bench: Bench) -> Outcome:
    """Zero-shot accuracy over the images that have a label."""
    labels = bench.inputs.labels
    if labels is None:
        raise NotApplicable("no --labels FILE was given")
    label_I = labels.of([picture.url for picture in bench.collection.pictures])
    labelled = label_I >= 0
    weight_KE = class_weights(lambda prompts: bench.encode_texts(prompts, "read class names"), labels.classes, labels.templates)
    score_NK = class_scores(bench.image_IE[torch.from_numpy(labelled)], weight_KE)
    numbers = classification_metrics(score_NK, label_I[labelled])
    top1_I, top5_I, label_of_I = np.full((3, len(labelled)), np.nan)
    rank_N = own_class_ranks(score_NK, label_I[labelled])
    top1_I[labelled], label_of_I[labelled] = 100.0 * (rank_N == 0), label_I[labelled]
    top5_I[labelled] = 100.0 * (rank_N < 5) if len(labels.classes) >= 5 else np.nan
    reasons = {"top5": f"only {len(labels.classes)} classes"} if numbers["top5"] is None else {}
    count = np.bincount(label_I[labelled], minlength=len(labels.classes))
    chance = {
        "top1": 100.0 / len(labels.classes),
        "top5": min(100.0, 500.0 / len(labels.classes)),
        "mean_per_class": 100.0 / len(labels.classes),
    }
    guess = score_NK.numpy().argmax(axis=1)
    more, groups, why = by_group(score_NK, label_I[labelled], bench.collection.domains, labelled)
    numbers |= {"macro_f1": macro_f1(guess, label_I[labelled])} | more
    reasons |= why
    details = groups | {
        "set": labels.name,
        "classes": len(labels.classes),
        "templates": len(labels.templates),
        "labels_digest": labels.digest,
        "templates_digest": digest_of_texts(labels.templates),
        "images": int(labelled.sum()),
        "images_without_label": int((~labelled).sum()),
        "classes_without_image": int((count == 0).sum()),
        "largest_class_percent": 100.0 * float(count.max()) / float(labelled.sum()),
        "primary": labels.primary,
        "each_class": class_rows(top1_I[labelled] > 0, label_I[labelled], labels.classes),
        "confusions": confusions(label_I[labelled], guess, labels.classes),
    }
    return Outcome(numbers, reasons, chance, details, each={"top1": top1_I, "top5": top5_I, "class": label_of_I})


def by_group(
    logit_NK: torch.Tensor, label_N: np.ndarray, groups: Sequence[str] | None, labelled_I: np.ndarray
) -> tuple[dict[str, float | None], dict[str, Any], dict[str, str]]:
    """(numbers, details, {number that is null: why}) of the group that is classified worst.

    groups: of all I pictures, of which the labelled are N.
    """
    names = ("worst_group_top1", "worst_group_top5")
    if groups is None:
        return dict.fromkeys(names), {}, dict.fromkeys(names, "the pictures of this data are in no groups, as WILDS' are")
    group_N, rank = np.asarray(groups)[labelled_I], own_class_ranks(logit_NK, label_N)
    top1, worst = worst_group(rank == 0, group_N)
    details = {"groups": len(np.unique(group_N)), "worst_group": worst}
    if logit_NK.shape[1] < 5:
        return {names[0]: top1, names[1]: None}, details, {names[1]: f"only {logit_NK.shape[1]} classes"}
    return {names[0]: top1, names[1]: worst_group(rank < 5, group_N)[0]}, details, {}


TASK = Task(
    name="classification",
    title="Zero-shot classification",
    meaning="Class names are put into sentences; an image gets the class whose sentences lie nearest.",
    numbers={
        "top1": Wording("Top-1 accuracy", "%", "images whose own class, of {classes}, scores highest"),
        "top5": Wording("Top-5 accuracy", "%", "images whose own class is among the five highest"),
        "mean_per_class": Wording("Mean per class", "%", "top-1 within each class, averaged over the classes that have an image"),
        "macro_f1": Wording("Macro F1", "%", "F1 within each class, averaged over the classes that have an image", quiet=True),
        "worst_group_top1": Wording("Top-1, worst group", "%", "top-1 in the group of images where it is lowest", quiet=True),
        "worst_group_top5": Wording("Top-5, worst group", "%", "top-5 in the group of images where it is lowest", quiet=True),
    },
    headlines=("top1", "top5", "mean_per_class"),
    run=run_classification,
    each=True,
    depends=lambda inputs: {"labels": inputs.labels.digest if inputs.labels else None},
)
