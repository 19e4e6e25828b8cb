"""What each number is called, its unit, and what it means, for the terminal table and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wording:
    """How one number is told. `meaning` may use {images}, {captions}, {classes}, {hidden}, {patches}, {steps}."""

    label: str
    unit: str
    meaning: str


FAMILIES = {"clip": "CLIP", "coca": "CoCa", "sycoca": "SyCoCa"}
TASK_TITLES = {
    "retrieval": "Zero-shot retrieval",
    "classification": "Zero-shot classification",
    "captioning": "Captioning",
    "reconstruction": "Text-guided reconstruction",
}
TASK_MEANINGS = {
    "retrieval": "Nothing is trained for this. Every image and every caption becomes a vector; the nearest vectors are the answer.",
    "classification": "Class names are put into sentences; an image gets the class whose sentences lie nearest.",
    "captioning": "The model writes a caption for every image, word by word. It is compared with what people (or the "
    "generator) wrote.",
    "reconstruction": "The patches of each image that match its caption best are hidden and rebuilt. Once the model "
    "may "
    "read the image's own caption, once another image's. Only that differs, so the gap is what the text contributes.",
}
WORDINGS: dict[str, dict[str, Wording]] = {
    "retrieval": {
        "i2t_r1": Wording("Image to text, R@1", "%", "images whose own caption comes first among all {captions} captions"),
        "i2t_r5": Wording("Image to text, R@5", "%", "... is among the first five"),
        "i2t_r10": Wording("Image to text, R@10", "%", "... is among the first ten"),
        "mTR": Wording("mTR", "%", "mean of the three numbers above"),
        "t2i_r1": Wording("Text to image, R@1", "%", "captions whose own image comes first among all {images} images"),
        "t2i_r5": Wording("Text to image, R@5", "%", "... is among the first five"),
        "t2i_r10": Wording("Text to image, R@10", "%", "... is among the first ten"),
        "mIR": Wording("mIR", "%", "mean of the three numbers above"),
        "i2t_median_rank": Wording("Image to text, median rank", "", "place of the own caption for the middle image; 1 is best"),
        "t2i_median_rank": Wording("Text to image, median rank", "", "place of the own image for the middle caption; 1 is best"),
    },
    "classification": {
        "top1": Wording("Top-1 accuracy", "%", "images whose own class, of {classes}, scores highest"),
        "top5": Wording("Top-5 accuracy", "%", "images whose own class is among the five highest"),
        "mean_per_class": Wording("Mean per class", "%", "top-1 within each class, averaged over the classes that have an image"),
    },
    "captioning": {
        "cider": Wording("CIDEr", "", "agreement in the words that tell images apart, 0 to 10; papers print it times 100"),
        "cider_shuffled": Wording(
            "CIDEr, captions shuffled",
            "",
            "control: each caption judged against the next image. Close to the line above would mean the model ignores the image",
        ),
        "bleu4": Wording("BLEU-4", "", "runs of four words shared with a reference, 0 to 1"),
        "meteor": Wording("METEOR", "", "shared words with stems and paraphrases, 0 to 1"),
        "rouge_l": Wording("ROUGE-L", "", "longest common word sequence, 0 to 1"),
        "spice": Wording("SPICE", "", "shared objects, attributes and relations, 0 to 1"),
        "bleu1": Wording("BLEU-1", "", "single words shared with a reference, 0 to 1"),
        "bleu2": Wording("BLEU-2", "", "runs of two words"),
        "bleu3": Wording("BLEU-3", "", "runs of three words"),
        "mean_words": Wording("Words a caption", "", "length of the generated captions"),
        "distinct": Wording(
            "Distinct captions",
            "%",
            "different captions among all that were written; low means the model repeats itself",
        ),
    },
    "reconstruction": {
        "own_l1": Wording("L1, own caption", "", "mean error of the hidden pixels in normalised units; lower is better"),
        "other_l1": Wording("L1, wrong caption", "", "the same images and hidden patches, guided by another image's caption"),
        "gap": Wording("Gap", "%", "how far the error with the own caption lies below that with the wrong one"),
        "gap_low": Wording("Gap, lower bound", "%", "2.5 % quantile over resampled images"),
        "gap_high": Wording("Gap, upper bound", "%", "97.5 % quantile over resampled images"),
        "better_share": Wording("Images won", "%", "images that the own caption rebuilds better than the wrong one"),
        "random_own_l1": Wording("L1, own caption, random mask", "", "as above with patches hidden at random"),
        "random_other_l1": Wording("L1, wrong caption, random mask", "", "as above with patches hidden at random"),
        "random_gap": Wording("Gap, random mask", "%", "the gap where chance, not the caption, chooses what is hidden"),
        "random_gap_low": Wording("Gap, random mask, lower bound", "%", "2.5 % quantile over resampled images"),
        "random_gap_high": Wording("Gap, random mask, upper bound", "%", "97.5 % quantile over resampled images"),
        "random_better_share": Wording("Images won, random mask", "%", "images that the own caption rebuilds better"),
    },
}
WORDINGS["retrieval"] |= {
    f"{name}_{bound}": Wording(f"{wording.label}, {side} bound", "%", f"{quantile} % quantile over resampled images")
    for name, wording in WORDINGS["retrieval"].items()
    if "_r" in name
    for bound, side, quantile in (("low", "lower", 2.5), ("high", "upper", 97.5))
}
HEADLINES: dict[str, tuple[str, ...]] = {
    "retrieval": ("i2t_r1", "i2t_r5", "i2t_r10", "mTR", "t2i_r1", "t2i_r5", "t2i_r10", "mIR"),
    "classification": ("top1", "top5", "mean_per_class"),
    "captioning": ("cider", "cider_shuffled", "bleu4", "meteor", "rouge_l", "spice"),
    "reconstruction": ("gap", "own_l1", "other_l1", "better_share", "random_gap"),
}
"""What is shown first; the rest stands under "all numbers"."""


def show(value: float | None, unit: str = "") -> str:
    """A number for people: one decimal for percent, three digits otherwise, a dash for null."""
    if value is None:
        return "-"
    shown = f"{value:.3f}" if unit != "%" and abs(value) < 10 else f"{value:.1f}"
    shown = shown[1:] if float(shown) == 0 and shown.startswith("-") else shown
    return f"{shown} %" if unit == "%" else shown


def meaning(task: str, metric: str, details: Mapping[str, Any]) -> str:
    """The meaning with this run's counts in it."""
    known = {name: details.get(name, "all") for name in ("images", "captions", "classes")}
    return WORDINGS[task][metric].meaning.format(
        **{name: f"{value:,}" if isinstance(value, int) else value for name, value in known.items()}
    )
