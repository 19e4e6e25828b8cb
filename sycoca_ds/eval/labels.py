"""Which class each picture of a data set shows: the file behind `--labels`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    path: str = ""
    """As it was given."""
    primary: str = "top1"
    """The metric of classification that is reported for this set."""

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
        raise UserError(
            f"--labels {path}: not readable as JSON ({error}); expected an object with name, classes, templates, labels "
            "(docs/ablations.md shows one)"
        ) from error
    if not isinstance(data, dict):
        raise UserError(
            f"--labels {path}: expected a JSON object with name, classes, templates, labels; found a {type(data).__name__}"
        )
    for field in ("classes", "templates"):
        value = data.get(field)
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry.strip() for entry in value):
            raise UserError(f"--labels {path}: field '{field}' must be a list of at least one non-empty string")
    classes, templates, labels = data["classes"], data["templates"], data.get("labels")
    tell_namesakes(path, classes)
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
    name, digest = str(data.get("name", path.stem)), hashlib.sha256(content).hexdigest()
    return LabelSet(name, tuple(classes), tuple(templates), labels, digest, str(path))


def tell_namesakes(where: str | Path, classes: Sequence[str]) -> None:
    """A warning where two classes share a name; CLIP's names of ImageNet's have "missile" and "sunglasses" twice."""
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        log.warning("%s: two classes share the name %s; images of the later one count as misses", where, ", ".join(twice))
