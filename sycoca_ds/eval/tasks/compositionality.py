"""Does the model read how words belong together? Captions that fit against captions that nearly do (SugarCrepe, Winoground, ARO).

Every item is scored by the cosine, by the caption's likelihood under the text decoder, and by what the picture adds to that; beside
them by the likelihood without a picture, because many wrong captions give themselves away as texts.

Legend: N items, P views and C captions of an item, H scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sycoca_ds.eval.compositions import aro, sugarcrepe, winoground
from sycoca_ds.eval.compositions.accuracy import Bounded, accuracies, by_picture, own_wins, winoground_wins
from sycoca_ds.eval.compositions.items import CompositionSet
from sycoca_ds.eval.compositions.reading import OF
from sycoca_ds.eval.compositions.scoring import EMPTY_PICTURES, TIES, Scores, score
from sycoca_ds.eval.compositions.wording import CHANCE, HEADLINES, HOWS, NUMBERS, PARTS, ROWS, SEEING
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.stats.paired import KEY
from sycoca_ds.eval.task import NotApplicable, Outcome, Task

WARNING = (
    "ARO's wrong captions are mostly unlikely texts, and a model that never looks wins it: only what lies above the blind column "
    "says anything of the picture (Hsieh et al. 2023; Lin et al. 2024)"
)


def measured(chosen: CompositionSet, scores: Scores, seed: int) -> tuple[dict[str, Bounded], dict[str, Any]]:
    """({number: value and bounds}, {score: accuracy of every group that counts})."""
    files = [item.views[0].file for item in scores.items]
    found, each = {}, {}
    for how, score_NPC in scores.by_name().items():
        if chosen.name == winoground.NAME:
            if how in SEEING:
                for part, won_N in winoground_wins(score_NPC, TIES[how]).items():
                    found[f"{chosen.name}_{part}_{how}"] = accuracies(won_N, [part] * len(won_N), files, [part], seed).mean
            continue
        result = accuracies(own_wins(score_NPC, TIES[how]), [item.group for item in scores.items], files, chosen.counted, seed)
        found[f"{chosen.name}_{how}"] = result.mean
        if chosen.name == sugarcrepe.NAME:
            found |= {f"{chosen.name}_{group}_{how}": bounded for group, bounded in result.groups.items()}
        each[how] = {group: bounded[0] for group, bounded in result.groups.items()}
    return found, each


def picture_by_picture(chosen: CompositionSet, scores: Scores) -> tuple[list[str], dict[str, np.ndarray]]:
    """(names of the pictures, {number: (I,) percent of its items won, number_weight: (I,) what it counts for})."""
    files, groups = [item.views[0].file for item in scores.items], [item.group for item in scores.items]
    found: dict[str, np.ndarray] = {}
    for how, score_NPC in scores.by_name().items():
        if chosen.name == winoground.NAME:
            won = winoground_wins(score_NPC, TIES[how]).items() if how in SEEING else ()
            told = [(f"{chosen.name}_{part}_{how}", won_N, groups, (chosen.name,)) for part, won_N in won]
        else:
            won_N, counted = own_wins(score_NPC, TIES[how]), chosen.counted
            told = [(f"{chosen.name}_{how}", won_N, groups, counted)]
            if chosen.name == sugarcrepe.NAME:
                told += [(f"{chosen.name}_{group}_{how}", won_N, groups, (group,)) for group in counted]
        for name, won_N, of, which in told:
            if set(which) <= set(of):
                found[name], found[f"{name}_weight"] = by_picture(won_N, of, files, which)
    return [f"{chosen.name} {number} {file.name}" for number, file in enumerate(dict.fromkeys(files))], found


def run_compositionality(bench: Bench) -> Outcome:
    """All benchmarks that were given."""
    sets = bench.inputs.compositions
    if not sets:
        raise NotApplicable(f"no --compositions NAME=FOLDER was given (NAME: {', '.join(dict.fromkeys(OF.values()))})")
    numbers: dict[str, float] = {}
    details: dict[str, Any] = {
        "interval": HOW,
        "alpha": 1,
        "empty_pictures": EMPTY_PICTURES if bench.config.model.captions else None,
        "sets": {},
        "told": [],
    }
    kept: dict[str, np.ndarray] = {}
    pictures: list[tuple[list[str], dict[str, np.ndarray]]] = []
    for chosen in sets:
        scores = score(bench, chosen)
        found, each = measured(chosen, scores, bench.options.seed)
        for name, (value, low, high) in found.items():
            if value is not None:
                numbers |= {name: value, f"{name}_low": low, f"{name}_high": high}
        details["sets"][chosen.name] = {
            "title": chosen.title,
            **scores.counts,
            "digest": chosen.digest,
            "unreadable_files": list(scores.unreadable),
            "groups": each,
        }
        details["told"].append(told(chosen, scores))
        pictures.append(picture_by_picture(chosen, scores))
        kept[f"{chosen.name}_item"] = np.array([item.name for item in scores.items])
        kept |= {f"{chosen.name}_{how}": score_NPC for how, score_NPC in scores.by_name().items()}
    if {chosen.name for chosen in sets} & {name for name, given in OF.items() if given == aro.NAME}:
        details["told"].append(WARNING)
    return Outcome(
        numbers,
        null_reasons(bench, sets, numbers),
        chances(numbers),
        details,
        {"compositionality.npz": kept},
        side_by_side(pictures),
    )


def side_by_side(pictures: list[tuple[list[str], dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The pictures of all benchmarks one after another; NaN where a number is not of their benchmark."""
    names, each, total = [], {}, sum(len(own) for own, _ in pictures)
    for own, found in pictures:
        for name, value_I in found.items():
            each[name] = np.full(total, np.nan)
            each[name][len(names) : len(names) + len(own)] = value_I
        names += own
    return {KEY: np.array(names), **each}


def told(chosen: CompositionSet, scores: Scores) -> str:
    """One line for people: what was counted, and what about it is odd."""
    counts = scores.counts
    line = f"{chosen.title}: {counts['items']:,} items on {counts['pictures']:,} pictures"
    odd = [
        f"{counts[name]:,} {words}"
        for name, words in (
            ("unreadable", f"more are left out, whose pictures cannot be read ({'; '.join(scores.unreadable)})"),
            ("same_tokens", "have two captions of the same tokens, which nobody can win"),
            ("cut", "have a caption longer than the context"),
            ("empty", "have an empty caption"),
        )
        if counts[name]
    ]
    return "; ".join([line, *odd])


def chances(numbers: dict[str, float]) -> dict[str, float]:
    """What guessing gives."""
    chance = {f"{winoground.NAME}_{part}_{how}": CHANCE[part] for part in PARTS for how in SEEING}
    chance |= {f"{row}_{how}": 50.0 for row in ROWS if not row.startswith(winoground.NAME) for how in HOWS}
    return {name: value for name, value in chance.items() if name in numbers}


def null_reasons(bench: Bench, sets: tuple[CompositionSet, ...], numbers: dict[str, float]) -> dict[str, str]:
    """Why each number that is missing is."""
    given, reasons = {chosen.name: chosen for chosen in sets}, {}
    opened = {OF[chosen.name] for chosen in sets}
    for name in NUMBERS.keys() - numbers.keys():
        base = name.removesuffix("_low").removesuffix("_high")
        owner = next(owner for owner in OF if base.startswith(owner))
        group = base.removeprefix(owner).strip("_").rpartition("_")[0]
        chosen = given.get(owner)
        if chosen is None:
            without = f"{aro.FILES.get(owner)} is not in the folder of --compositions {OF[owner]}"
            reasons[name] = without if OF[owner] in opened else f"no --compositions {OF[owner]}=FOLDER was given"
        elif not base.endswith("_cosine") and not bench.config.model.captions:
            reasons[name] = f"a '{bench.config.model.family}' model has no text decoder"
        elif group in chosen.missing:
            reasons[name] = chosen.missing[group]
        elif not group and chosen.missing:
            reasons[name] = f"not all of its subsets are there ({', '.join(chosen.missing)})"
        elif not chosen.counted:
            reasons[name] = "no relation or pair of attributes has enough items to count"
        else:
            reasons[name] = "no picture of its items can be read"
    return reasons


def depends(inputs: Inputs) -> dict[str, Any]:
    return {"compositions": {chosen.name: chosen.digest for chosen in inputs.compositions}}


TASK = Task(
    name="compositionality",
    title="Compositions",
    meaning="A picture, its caption, and one that differs by a swapped, replaced or added word. The caption that scores higher is "
    "the answer; a tie is no answer. The blind score never sees the picture: what it reaches is known from the texts alone.",
    numbers=NUMBERS,
    headlines=HEADLINES,
    run=run_compositionality,
    files=("compositionality.npz",),
    each=True,
    depends=depends,
)
