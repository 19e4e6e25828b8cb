"""Zero-shot classification: names of classes put into templates are the classifier.

Legend: N images, K classes, M templates, E embedding width.
Protocol: open_clip zero_shot_classifier.py = CLIP_benchmark zeroshot_classification.py = SLIP eval_zeroshot.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelSet:
    """Classes, templates and the class index of every labelled url of one data set."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    labels: dict[str, int]
    digest: str

    def of(self, urls: Sequence[str]) -> np.ndarray:
        """(N,) int64: class index of each url, -1 where the file has no label. UserError if none of the urls has
        one."""
        label_N = np.array([self.labels.get(url, -1) for url in urls], dtype=np.int64)
        if len(urls) and (label_N < 0).all():
            raise UserError(
                f"labels '{self.name}': none of the data set's {len(urls)} urls is among its {len(self.labels)} "
                f"(first url here: "
                f"{urls[0]}; first there: {next(iter(self.labels), 'none')}); give the label file of this data set"
            )
        return label_N


def load_labels(path: str | Path) -> LabelSet:
    """Reads {"name": str, "classes": [str], "templates": ["... {c} ..."], "labels": {url: class index}}; UserError
    names the field."""
    path = Path(path)
    try:
        content = path.read_bytes()
        data = json.loads(content)
    except FileNotFoundError:
        raise UserError(f"--labels {path}: no such file; expected a JSON with name, classes, templates, labels") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--labels {path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise UserError(
            f"--labels {path}: expected a JSON object with name, classes, templates, labels; found a {type(data).__name__}"
        )
    for field in ("classes", "templates"):
        value = data.get(field)
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry.strip() for entry in value):
            raise UserError(f"--labels {path}: field '{field}' must be a list of at least one non-empty string")
    classes, templates, labels = data["classes"], data["templates"], data.get("labels")
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:  # CLIP's names of ImageNet's classes have "missile" and "sunglasses" twice
        log.warning("%s: two classes share the name %s; images of the later one count as misses", path, ", ".join(twice))
    for template in templates:
        if "{c}" not in template:
            raise UserError(f"--labels {path}: field 'templates': {template!r} lacks {{c}}, the place of the class name")
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"--labels {path}: field 'labels' must map at least one url to its class index")
    for url, label in labels.items():
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(classes):
            raise UserError(
                f"--labels {path}: field 'labels': {url} has class index {label!r}, expected a whole number from 0 to "
                f"{len(classes) - 1} ({len(classes)} classes)"
            )
    return LabelSet(str(data.get("name", path.stem)), tuple(classes), tuple(templates), labels, hashlib.sha256(content).hexdigest())


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


def classification_metrics(logit_NK: torch.Tensor, label_N: np.ndarray) -> dict[str, float | None]:
    """Percent: `top1`, `top5` (null below 5 classes), `mean_per_class` (top-1 averaged over the classes that have an
    image).

    At an equal logit the lower class index ranks ahead, so the numbers do not depend on a sort's whims.
    """
    label = torch.as_tensor(label_N, device=logit_NK.device)
    own = logit_NK.gather(1, label[:, None])
    position = torch.arange(logit_NK.shape[1], device=logit_NK.device)
    rank = ((logit_NK > own) | ((logit_NK == own) & (position < label[:, None]))).sum(dim=1).cpu().numpy()
    hit = rank == 0
    per_class = [float(hit[label_N == k].mean()) for k in range(logit_NK.shape[1]) if (label_N == k).any()]
    return {
        "top1": 100.0 * float(hit.mean()),
        "top5": 100.0 * float((rank < 5).mean()) if logit_NK.shape[1] >= 5 else None,
        "mean_per_class": 100.0 * float(np.mean(per_class)),
    }
