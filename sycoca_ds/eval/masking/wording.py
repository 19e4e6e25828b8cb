"""What the numbers of the task masking are called and mean."""

from __future__ import annotations

from dataclasses import replace

from sycoca_ds.eval.task import Wording, with_bounds

MEASURES = {
    "named_over_unnamed": (
        "Named over unnamed",
        "chance that a patch of an object which the caption names scores above one of an object it does not name",
    ),
    "named_over_rest": ("Named over everything else", "the same above all patches that show nothing named"),
    "objects_over_background": (
        "Objects over background",
        "chance that a patch of any object scores above one of the background: needs no caption",
    ),
    "pointing": ("Pointing", "phrases whose own words score highest on a patch of what they name"),
    "word_iou": ("Word-patch IoU", "overlap of what a phrase names with as many patches that its own words score highest"),
}
UNDER = {"": "", "other_": ", another caption", "no_text_": ", no text", "untrained_": ", untrained"}
"""Prefix of a number -> how it is told."""
KINDS = (
    ("named", "named objects", "an object which it names"),
    ("unnamed", "unnamed objects", "an object which it does not name"),
    ("background", "background", "a background which it does not name"),
    ("named_background", "named background", "a background which it names"),
)
"""Kinds of patches, as in the name of a gap, of its label and of what it means."""


def _dependence(prefix: str) -> dict[str, Wording]:
    under = UNDER[prefix]
    return {
        f"{prefix}caption_overlap": Wording(
            f"Masks under two captions{under}", "", "share of a picture's hidden patches that another caption hides as well"
        ),
        f"{prefix}caption_ignored": Wording(
            f"Caption ignored{under}", "", "the line above, 0 at chance, 1 where the caption changes nothing"
        ),
        f"{prefix}own_caption_higher": Wording(
            f"Own caption higher{under}",
            "",
            "pictures whose best patches score higher under their own caption than under another's",
        ),
        f"{prefix}position_overlap": Wording(
            f"Masks of two pictures{under}", "", "share of a picture's hidden patches that are hidden in another picture, too"
        ),
        f"{prefix}position_bias": Wording(
            f"Position bias{under}", "", "the line above, 0 at chance, 1 where all masks are the same"
        ),
    }


def _numbers() -> dict[str, Wording]:
    own = _dependence("")
    own |= {
        "no_text_overlap": Wording(
            "Masks under the own caption and none", "", "share of hidden patches that the empty caption hides as well"
        ),
        "score_std": Wording("Spread of scores", "", "standard deviation of a picture's scores over its patches"),
        "score_range": Wording("Range of scores", "", "highest less lowest of a picture's scores"),
    }
    found = with_bounds(own, lambda name: name in ("caption_overlap", "own_caption_higher", "position_overlap", "no_text_overlap"))
    untrained = {name: replace(wording, control=True) for name, wording in _dependence("untrained_").items()}
    found |= with_bounds(untrained, lambda name: not name.endswith(("_ignored", "_bias")))
    gain = Wording("Named over unnamed, gain", "", "what the own caption adds to it over another picture's caption")
    found |= with_bounds(
        {
            f"{prefix}{name}": Wording(f"{label}{under}", "", meaning, control=bool(prefix))
            for name, (label, meaning) in MEASURES.items()
            for prefix, under in UNDER.items()
        }
        | {"named_over_unnamed_gain": gain}
    )
    found |= with_bounds(
        {
            f"{prefix}gap_{kind}": Wording(
                f"Gap, {words}{under}",
                "%",
                f"how far the own caption lowers the error of hidden patches that show {what}",
                control=bool(prefix),
            )
            for prefix, under in (("", ""), ("random_", ", random mask"))
            for kind, words, what in KINDS
        }
    )
    return found


NUMBERS = _numbers()
"""Every number, in the order of results.json."""
