"""Do the masks know the caption? What the numbers say of it, in plain sentences: on the page, on the terminal, as the warning of a
training.

That the own caption scores higher is a weak sign: a contrast that works raises it wherever in the picture. Where it is known which
objects the caption names and which it leaves out, only that decides: the named ones have to score higher, and less so under another
picture's caption, or what is found stands out by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from sycoca_ds.eval.masking.yardstick import unasked
from sycoca_ds.eval.regions.patches import Regions

IGNORED = 0.95
"""`caption_ignored` above which masks are said to ignore the caption: another caption changes less than a twentieth of what chance
would. A score that finds exactly what is named, and ranks all other patches the same way whatever the caption, comes to 1 - a /
r_h, where a is the share of the picture that captions name: it stays below from a fortieth on."""
MOSTLY = 0.5
"""`caption_ignored` above which the picture is said to decide more than the caption."""
NO_UNNAMED = "the captions leave out no object that their pictures show"


def asked_of_objects(numbers: Mapping[str, float]) -> bool:
    """Whether it was measured if named objects score above unnamed ones, on as many pictures as tell chance from knowing."""
    return "chance_gain" in numbers


def knows(numbers: Mapping[str, float]) -> bool:
    """Whether the scores know the caption, by the strictest measure there is.

    Args:
        numbers: of one set of scores under the own caption and another picture's (`yardstick.numbers`).
    """
    if asked_of_objects(numbers):
        return numbers["named_over_unnamed"] > 0.5 and numbers["named_over_unnamed_gain"] > numbers["chance_gain"]
    return depends(numbers)


def depends(numbers: Mapping[str, float]) -> bool:
    """Whether what is hidden depends on the caption, and the own one scores higher than coin tosses explain."""
    return numbers["caption_ignored"] <= IGNORED and numbers["own_caption_higher"] > numbers["chance_higher"]


def _same(numbers: Mapping[str, float]) -> str:
    return f"{100 * numbers['caption_overlap']:.1f} %"


def _objects(numbers: Mapping[str, float]) -> str:
    named, other = (100 * numbers[f"{prefix}named_over_unnamed"] for prefix in ("", "other_"))
    return (
        f"a patch of an object that the caption names scores above one of an object that it leaves out in {named:.1f} % of cases, "
        f"under another picture's caption in {other:.1f} % (chance 50 %)"
    )


def warning(numbers: Mapping[str, float]) -> str | None:
    """What to tell a user whose masks do not know the caption; None if they do."""
    if knows(numbers):
        return None
    chance = f"chance {100 * numbers['chance_overlap']:.0f} %"
    if asked_of_objects(numbers):
        what = _objects(numbers)
    elif numbers["caption_ignored"] > IGNORED:
        what = f"they ignore it: another picture's caption hides {_same(numbers)} of the same patches ({chance})"
    else:
        what = (
            f"a picture's patches score higher under its own caption than under another one in "
            f"{100 * numbers['own_caption_higher']:.0f} % of pictures (chance 50 %), though another one hides only "
            f"{_same(numbers)} of the same patches"
        )
    return f"the masks do not know the caption: {what}. What is hidden has nothing to do with what it says; see docs/masking.md"


def warmed_up(numbers: Mapping[str, float], bound: float, metric: str | None = None) -> str | None:
    """The measure that ends a warm-up of masks, with its value; None if these numbers do not end it, or if there are none, as on
    ranks that do not measure and of a model that hides nothing.

    Args:
        bound: what has to be reached.
        metric: by default the best one that there is. "named_over_unnamed" has to be more than what stands out by itself, too;
            "own_caption_higher" more than coin tosses, of scores that do not ignore the caption.
    """
    if "caption_ignored" not in numbers:
        return None
    metric = metric or ("named_over_unnamed" if asked_of_objects(numbers) else "own_caption_higher")
    holds = asked_of_objects(numbers) and knows(numbers) if metric == "named_over_unnamed" else depends(numbers)
    value = numbers.get(metric, 0.0)
    return f"{metric} is {value:.3f}" if value >= bound and holds else None


def told(numbers: Mapping[str, float], regions: Regions | None) -> str:
    """Some sentences for somebody who has never heard of this measure: a number, what is known of objects, what follows.

    Args:
        regions: where the objects are, if that is known.
    """
    chance = f"chance is {100 * numbers['chance_overlap']:.0f} %"
    if "untrained_caption_overlap" in numbers:
        chance += f", with untrained weights {100 * numbers['untrained_caption_overlap']:.1f} %"
    found = [f"Under another picture's caption {_same(numbers)} of the hidden patches stay the same; {chance}."]
    if asked_of_objects(numbers):
        found.append(f"{_objects(numbers).capitalize()}.")
        found.append(f"So the scores {'' if knows(numbers) else 'do not '}know which objects the caption names.")
        return " ".join(found)
    if regions is None:
        found.append("Whether what they show is what the caption names was not asked: that takes --regions.")
    else:
        why = NO_UNNAMED if "named_over_unnamed" in unasked(regions) else "too few pictures show both"
        found.append(f"Whether named objects score above unnamed ones cannot be asked here: {why}.")
    if "pointing" in numbers:
        own, other, by_chance = (100 * numbers[f"{prefix}pointing"] for prefix in ("", "other_", "chance_"))
        found.append(
            f"In {own:.1f} % of cases a phrase's words score highest on what it names, those of another caption's phrase there in "
            f"{other:.1f} % (chance {by_chance:.1f} %)."
        )
    if numbers["caption_ignored"] > IGNORED:
        found.append("So the caption decides nothing.")
    elif not knows(numbers):
        found.append("The own caption scores no higher than the other one, so what changes changes at random.")
    elif numbers["caption_ignored"] > MOSTLY:
        found.append("So the picture decides what is hidden, more than its caption does.")
    else:
        found.append("So what is hidden depends on the caption.")
    return " ".join(found)
