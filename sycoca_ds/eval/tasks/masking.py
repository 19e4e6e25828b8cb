"""Do the masks know the caption? Attentive scores (paper eq. 7) under the own caption, beside another picture's, none, and
untrained weights; where regions are known, whether they find what the caption names, and where the caption helps to rebuild.

Legend: I images, C conditions, R = 1 + most phrases of a picture, N patches, M masks, G guides, K kinds of patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.masking.asking import compared, scores
from sycoca_ds.eval.masking.attending import attending, hidden_sets, overlap
from sycoca_ds.eval.masking.gaps import KINDS, MASKS, gap_errors, gap_numbers
from sycoca_ds.eval.masking.phrases import PHRASE_MEASURES
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS
from sycoca_ds.eval.masking.verdict import NO_UNNAMED, told
from sycoca_ds.eval.masking.wording import MEASURES, NUMBERS, UNDER
from sycoca_ds.eval.masking.yardstick import PATCH_MEASURES, gain_chance, intervals, means, unasked
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.stats.controls import wrong_captions
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.stats.means import Mean
from sycoca_ds.eval.task import NotApplicable, Outcome, Task
from sycoca_ds.eval.tasks.reconstruction import rebuilding_errors

DEPENDENCE = ("caption_overlap", "caption_ignored", "own_caption_higher", "position_overlap", "position_bias")
NO_REGIONS = "no --regions FILE_OR_FOLDER was given"
ALL_NAMED = "the captions name all that their pictures show"
OF_UNNAMED_OBJECTS = ("named_over_unnamed", "named_over_unnamed_gain", "gap_unnamed")
OF_WHAT_IS_LEFT_OUT = (*OF_UNNAMED_OBJECTS, "named_over_rest", "gap_background")
"""Numbers that compare with, or are of, what captions leave out."""


def means_of(bench: Bench, score_ICRN: torch.Tensor) -> dict[str, Mean]:
    return means(score_ICRN.numpy(), bench.inputs.regions, bench.config.model.masking)


def measured(
    bench: Bench, score_ICRN: torch.Tensor, found: dict[str, Mean], prefix: str = "", bounds: bool = True
) -> dict[str, float]:
    """The numbers of one set of scores, those that are null left out.

    Args:
        found: `means_of` them.
        prefix: "untrained_" keeps what is measured under the own caption, under that name.
    """
    masking, seed = bench.config.model.masking, bench.options.seed
    if prefix:
        found = {name: mean for name, mean in found.items() if name in (*DEPENDENCE, *MEASURES)}
    numbers = {name: mean.value for name, mean in found.items() if mean.value is not None}
    own_IN, other_IN = score_ICRN[:, 0, 0], score_ICRN[:, 1, 0]
    numbers |= gain_chance(found) | attending(own_IN, other_IN, masking)
    if bounds:
        numbers |= intervals(score_ICRN, found, masking, seed)
    return {f"{prefix}{name}": value for name, value in numbers.items()}


def run_masking(bench: Bench) -> Outcome:
    """Scores of the checkpoint's own similarity with all controls, of the others in `options.similarity` without intervals."""
    data, regions, config = bench.collection, bench.inputs.regions, bench.config.model
    try:
        other_I = wrong_captions(data.captions_of_image)
    except UserError as error:
        raise NotApplicable(str(error)) from error
    first = [captions[0] for captions in data.captions_of_image]
    untrained, own = bench.untrained, config.masking.similarity
    own_score = scores(bench, first, other_I, own, bench.model)
    found, fresh = means_of(bench, own_score), scores(bench, first, other_I, own, untrained)
    found_fresh = means_of(bench, fresh)
    numbers = measured(bench, own_score, found) | measured(bench, fresh, found_fresh, "untrained_")
    if regions is not None and config.reads_to_rebuild:
        numbers |= gap_numbers(rebuilding_errors(bench)["kind_error"], bench.options.seed)
    table, (others, left_out) = {own: numbers}, compared(bench)
    for named in others:
        trained, fresh = (scores(bench, first, other_I, named, model) for model in (bench.model, untrained))
        table[named] = measured(bench, trained, means_of(bench, trained), bounds=False)
        table[named] |= measured(bench, fresh, means_of(bench, fresh), "untrained_", bounds=False)
    details = {
        "images": len(data),
        "similarity": own,
        "other_pictures": len(data) - 1 if any(named.startswith("centred_over_pictures") for named in table) else None,
        "patches": own_score.shape[3],
        "hidden_patches": int(hidden_sets(own_score[:1, 0, 0], config.masking).sum()),
        "interval": HOW,
        "told": told(numbers, regions),
        "regions": {"kind": regions.kind, **regions.counts} if regions is not None else None,
        "similarities": {
            similarity: {name: value for name, value in found.items() if name in NUMBERS and not name.endswith(("_low", "_high"))}
            for similarity, found in table.items()
        },
        "similarities_left_out": left_out,
    }
    kept = shown(bench, own_score, other_I)
    found |= {f"untrained_{name}": mean for name, mean in found_fresh.items() if name in (*DEPENDENCE, *MEASURES)}
    each = {name: mean.value_I for name, mean in found.items()}
    each |= {f"{name}_count": mean.count_I for name, mean in found.items() if (mean.count_I > 1).any()}  # of phrases
    if regions is not None and config.reads_to_rebuild:
        each |= gap_errors(rebuilding_errors(bench)["kind_error"], numbers)
    return Outcome(numbers, null_reasons(bench, numbers), chances(table), details, {"masking.npz": kept}, each)


def shown(bench: Bench, score_ICRN: torch.Tensor, other_I: np.ndarray) -> dict[str, np.ndarray]:
    """What the report shows of some pictures: hidden sets and scores under both captions."""
    rows = bench.shown
    own_IN, other_IN = score_ICRN[rows, 0, 0], score_ICRN[rows, 1, 0]
    hidden, other_hidden = (hidden_sets(score_IN, bench.config.model.masking) for score_IN in (own_IN, other_IN))
    return {
        "number": np.array(rows),
        "other": other_I[rows],
        "own_score": own_IN.numpy(),
        "other_score": other_IN.numpy(),
        "own_hidden": hidden.numpy(),
        "other_hidden": other_hidden.numpy(),
        "overlap": overlap(hidden, other_hidden).numpy(),
    }


def chances(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """What scores that know nothing come to, of every number that any similarity has and for which that is known."""
    numbers = {name: value for found in table.values() for name, value in found.items()}
    overlap_chance = numbers["chance_overlap"]
    of = {"caption_overlap": overlap_chance, "no_text_overlap": overlap_chance, "position_overlap": overlap_chance}
    of |= {"caption_ignored": 0.0, "position_bias": 0.0, "own_caption_higher": 0.5, **dict.fromkeys(PATCH_MEASURES, 0.5)}
    of |= {name: numbers[f"chance_{name}"] for name in PHRASE_MEASURES if f"chance_{name}" in numbers}
    chance = {f"{prefix}{name}": value for prefix in UNDER for name, value in of.items()}
    chance |= {"named_over_unnamed_gain": 0.0} | {f"{prefix}gap_{kind}": 0.0 for prefix in MASKS for kind in KINDS}
    return {name: value for name, value in chance.items() if name in numbers}


def null_reasons(bench: Bench, numbers: dict[str, float]) -> dict[str, str]:
    """Why each number that is missing is."""
    config, regions, reasons = bench.config.model, bench.inputs.regions, {}
    without = unasked(regions) if regions is not None else ()
    wordless = config.masking.similarity in WITHOUT_WORDS
    for name in NUMBERS.keys() - numbers.keys():
        base = measure = name.removesuffix("_low").removesuffix("_high")
        for prefix in (*UNDER, *MASKS):
            measure = measure.removeprefix(prefix)
        if regions is None:
            reason = NO_REGIONS
        elif measure in OF_WHAT_IS_LEFT_OUT and "named_over_rest" in without:
            reason = ALL_NAMED
        elif measure in OF_UNNAMED_OBJECTS and "named_over_unnamed" in without:
            reason = NO_UNNAMED
        elif measure.startswith("gap_"):
            reason = (
                f"fewer than two pictures hide a patch of this kind ({measure.removeprefix('gap_').replace('_', ' ')})"
                if config.reads_to_rebuild
                else f"a '{config.family}' model with masked image modelling '{config.masking.mim}' rebuilds nothing by a caption"
            )
        elif measure in PHRASE_MEASURES:
            reason = f"{config.masking.similarity} has no scores of single words" if wordless else "no phrase names a region"
        else:
            reason = "fewer than two pictures show what it compares" if base in numbers else "no picture shows what it compares"
        reasons[name] = reason
    return reasons


def depends(inputs: Inputs) -> dict[str, Any]:
    return {"regions": inputs.regions.digest if inputs.regions else None, "similarity": list(inputs.options.similarity)}


TASK = Task(
    name="masking",
    title="Masks and the caption",
    meaning="The paper hides the patches that match the caption best. Here every picture is scored under its own caption and under "
    "another picture's: where the two hide the same patches, the caption chose nothing. With regions it is known what the caption "
    "names, and a score that knows the caption puts that above what it does not name, under its own caption only.",
    numbers=NUMBERS,
    headlines=(
        *("caption_overlap", "untrained_caption_overlap", "own_caption_higher", "untrained_own_caption_higher", "position_overlap"),
        *(
            "named_over_unnamed",
            "other_named_over_unnamed",
            "untrained_named_over_unnamed",
            "objects_over_background",
            "pointing",
            "other_pointing",
            "word_iou",
        ),
        *(f"gap_{kind}" for kind in KINDS),
    ),
    run=run_masking,
    files=("masking.npz",),
    each=True,
    depends=depends,
)
