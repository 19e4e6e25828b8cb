"""What the numbers of the task alignment are called and mean, and a few sentences on what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sycoca_ds.eval.alignment.segmenting import MEASURES
from sycoca_ds.eval.masking.phrases import PHRASE_MEASURES
from sycoca_ds.eval.masking.wording import MEASURES as OF_MASKING
from sycoca_ds.eval.task import Wording, with_bounds

HOWS = {"": "word scores", "gradcam_": "Grad-CAM", "gradcam_likelihood_": "Grad-CAM of the log-probability"}
"""Prefix of a phrase's number -> what map of patches is looked at."""
UNDER_PHRASES = {"": "", "other_": ", another caption", "untrained_": ", untrained"}
KINDS = {"": "", "objects_": ", objects alone"}
"""Prefix of a number of segmentation -> which pixels and names count."""
UNDER_CLASSES = {"": "", "shuffled_": ", names shuffled", "untrained_": ", untrained"}
OF_CLASSES = {
    "miou": (
        "mIoU",
        "intersection over union of pixels, summed over the images a class at a time, mean over classes{and_background}",
    ),
    "pixel_accuracy": ("Pixel accuracy", "pixels that get their own class{or_background}"),
}


def phrase_numbers() -> dict[str, Wording]:
    found = {}
    for how, words in HOWS.items():
        for measure in PHRASE_MEASURES:
            label, meaning = OF_MASKING[measure]
            meaning = meaning if not how else f"{meaning}, by {words}"
            for under, told in UNDER_PHRASES.items():
                found[f"{under}{how}{measure}"] = Wording(f"{label}, {words}{told}", "", meaning, control=bool(under))
    return found


def class_numbers() -> dict[str, Wording]:
    found = {}
    for kind, which in KINDS.items():
        for measure in MEASURES:
            label, meaning = OF_CLASSES[measure]
            of_objects = "; background neither counts nor competes"
            and_background, or_background = (of_objects, of_objects) if kind else (" and the background", ", or background")
            meaning = meaning.format(and_background=and_background, or_background=or_background)
            for under, told in UNDER_CLASSES.items():
                found[f"{under}{kind}{measure}"] = Wording(f"{label}{which}{told}", "%", meaning, control=bool(under))
    return found


NUMBERS = with_bounds(phrase_numbers()) | with_bounds(class_numbers(), lambda name: not name.startswith("shuffled_"))
"""Every number, in the order of results.json."""


def told(numbers: Mapping[str, float], chance: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """Sentences for somebody who has never heard of these measures, each number beside its controls."""
    found = []
    for how, words in HOWS.items():
        name = f"{how}pointing"
        if name in numbers:
            own, other, fresh = (100 * numbers[f"{under}{name}"] for under in UNDER_PHRASES)
            found.append(
                f"By {words} a phrase points at what it names in {own:.1f} % of cases, another caption's phrase there in "
                f"{other:.1f} %, with untrained weights {fresh:.1f} % (chance {100 * chance[name]:.1f} %)"
            )
    if "miou" in numbers:
        found.append(
            f"Names find their pixels with a mIoU of {numbers['miou']:.1f} % ({details['named_by']}; background: "
            f"{details['background']}), of objects alone {numbers['objects_miou']:.1f} %; {_controls(numbers, chance)}"
        )
    return found


def _controls(numbers: Mapping[str, float], chance: Mapping[str, float]) -> str:
    said = []
    for under, words in (("shuffled_", "with names shuffled"), ("untrained_", "with untrained weights")):
        if f"{under}miou" in numbers:
            said.append(f"{words} {numbers[f'{under}miou']:.1f} and {numbers[f'{under}objects_miou']:.1f} %")
    return ", ".join([*said, f"chance {chance['miou']:.1f} and {chance['objects_miou']:.1f} %"])
