"""Zero-shot classification: names of classes put into templates are the classifier.

Legend: N images, K classes, M templates, E embedding width.
Protocol: open_clip zero_shot_classifier.py = CLIP_benchmark zeroshot_classification.py = SLIP eval_zeroshot.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.bench import Bench
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording


def class_weights(encode: Callable[[list[str]], torch.Tensor], classes: Iterable[str], templates: Sequence[str]) -> torch.Tensor:
    """(K, E) float32, L2-normalised: per class the mean of the L2-normalised features of all its prompts, normalised
    again.

    encode: prompts -> (n, E) features. Leaving out the per-prompt L2 would weigh prompts by their length and change
    predictions.
    """
    prompts = [template.replace("{c}", name) for name in classes for template in templates]
    feature = encode(prompts).to(torch.float32)
    feature_KME = torch.nn.functional.normalize(feature, dim=-1).view(-1, len(templates), feature.shape[-1])
    return torch.nn.functional.normalize(feature_KME.mean(dim=1), dim=-1)


def own_class_ranks(logit_NK: torch.Tensor, label_N: np.ndarray) -> np.ndarray:
    """(N,) place of the own class, 0 the highest. At an equal logit the lower class index ranks ahead, so that nothing depends on a
    sort's whims."""
    label = torch.as_tensor(label_N, device=logit_NK.device)
    own = logit_NK.gather(1, label[:, None])
    position = torch.arange(logit_NK.shape[1], device=logit_NK.device)
    return ((logit_NK > own) | ((logit_NK == own) & (position < label[:, None]))).sum(dim=1).cpu().numpy()


def classification_metrics(logit_NK: torch.Tensor, label_N: np.ndarray) -> dict[str, float | None]:
    """Percent: `top1`, `top5` (null below 5 classes), `mean_per_class` (top-1 averaged over the classes that have an
    image)."""
    rank = own_class_ranks(logit_NK, label_N)
    hit = rank == 0
    per_class = [float(hit[label_N == k].mean()) for k in range(logit_NK.shape[1]) if (label_N == k).any()]
    return {
        "top1": 100.0 * float(hit.mean()),
        "top5": 100.0 * float((rank < 5).mean()) if logit_NK.shape[1] >= 5 else None,
        "mean_per_class": 100.0 * float(np.mean(per_class)),
    }


def run_classification(bench: Bench) -> Outcome:
    """Zero-shot accuracy over the images that have a label."""
    labels = bench.inputs.labels
    if labels is None:
        raise NotApplicable("no --labels FILE was given")
    label_I = labels.of([picture.url for picture in bench.collection.pictures])
    labelled = label_I >= 0
    weight_KE = class_weights(lambda prompts: bench.encode_texts(prompts, "read class names"), labels.classes, labels.templates)
    logit_NK = 100.0 * bench.image_IE[torch.from_numpy(labelled)] @ weight_KE.T
    numbers = classification_metrics(logit_NK, label_I[labelled])
    top1_I = np.full(len(labelled), np.nan)
    top1_I[labelled] = 100.0 * (own_class_ranks(logit_NK, label_I[labelled]) == 0)
    reasons = {"top5": f"only {len(labels.classes)} classes"} if numbers["top5"] is None else {}
    count = np.bincount(label_I[labelled], minlength=len(labels.classes))
    chance = {
        "top1": 100.0 / len(labels.classes),
        "top5": min(100.0, 500.0 / len(labels.classes)),
        "mean_per_class": 100.0 / len(labels.classes),
    }
    guess = logit_NK.argmax(dim=1).numpy()
    details = {
        "set": labels.name,
        "classes": len(labels.classes),
        "templates": len(labels.templates),
        "labels_digest": labels.digest,
        "images": int(labelled.sum()),
        "images_without_label": int((~labelled).sum()),
        "classes_without_image": int((count == 0).sum()),
        "largest_class_percent": 100.0 * float(count.max()) / float(labelled.sum()),
        "primary": labels.primary,
        "confusions": confusions(label_I[labelled], guess, labels.classes),
    }
    return Outcome(numbers, reasons, chance, details, each={"top1": top1_I})


def confusions(label_N: np.ndarray, guess_N: np.ndarray, classes: tuple[str, ...], most: int = 5) -> list[dict[str, Any]]:
    """The pairs of classes that are mistaken most: class, taken_for, images."""
    pairs, counts = np.unique(np.stack([label_N, guess_N])[:, label_N != guess_N], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [{"class": classes[pairs[0, o]], "taken_for": classes[pairs[1, o]], "images": int(counts[o])} for o in order]


TASK = Task(
    name="classification",
    title="Zero-shot classification",
    meaning="Class names are put into sentences; an image gets the class whose sentences lie nearest.",
    numbers={
        "top1": Wording("Top-1 accuracy", "%", "images whose own class, of {classes}, scores highest"),
        "top5": Wording("Top-5 accuracy", "%", "images whose own class is among the five highest"),
        "mean_per_class": Wording("Mean per class", "%", "top-1 within each class, averaged over the classes that have an image"),
    },
    headlines=("top1", "top5", "mean_per_class"),
    run=run_classification,
    each=True,
    depends=lambda inputs: {"labels": inputs.labels.digest if inputs.labels else None},
)
