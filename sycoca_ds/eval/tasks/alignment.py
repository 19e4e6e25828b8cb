"""Do patches and words fit each other? Phrases that point at what they name, classes of pixels by their names, Grad-CAM of words;
each beside another picture's caption, shuffled names, untrained weights and chance.

Legend: I images, C conditions, Q most phrases of a picture, N patches, K labels (classes and the background), S image side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.eval.alignment import segmenting
from sycoca_ds.eval.alignment.explaining import TARGETS, phrase_maps
from sycoca_ds.eval.alignment.naming import TEMPLATES, WITHOUT_CLASSES, Namer, background_of, segmented
from sycoca_ds.eval.alignment.segmenting import MEASURES
from sycoca_ds.eval.alignment.showing import shown
from sycoca_ds.eval.alignment.wording import HOWS, KINDS, NUMBERS, UNDER_CLASSES, UNDER_PHRASES, class_numbers, phrase_numbers, told
from sycoca_ds.eval.masking.asking import compared, scores
from sycoca_ds.eval.masking.phrases import PHRASE_MEASURES, phrase_means
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.stats.controls import wrong_captions
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.stats.means import Mean, mean_intervals
from sycoca_ds.eval.task import Outcome, Task

NO_REGIONS = "no --regions FILE_OR_FOLDER was given"
OWN_AND_OTHER = ("", "other_")


def run_alignment(bench: Bench) -> Outcome:
    """Numbers of the checkpoint's own scores with all controls, of the others in `options.similarity` without intervals."""
    regions, segments = bench.inputs.regions, bench.inputs.segments
    models, own = (bench.model, bench.untrained), bench.config.model.masking.similarity
    others, left_out = compared(bench)
    found = Outcome({}, details={"images": len(bench.collection), "similarity": own, "interval": HOW})
    table: dict[str, dict[str, float]] = {named: {} for named in (own, *others)}
    if regions is not None and regions.phrases:
        try:
            other_I = wrong_captions(bench.collection.captions_of_image)
        except UserError as error:
            found.reasons |= dict.fromkeys(phrase_numbers(), str(error))
        else:
            _phrases(bench, other_I, models, found, table)
    if segments is not None and segments.classes and segments.there:
        _classes(bench, models, found, table, left_out)
    found.reasons |= {name: _reason(bench, name, found) for name in NUMBERS.keys() - found.numbers.keys() - found.reasons.keys()}
    found.details |= {
        "regions": {"kind": regions.kind, **regions.counts} if regions is not None else None,
        "similarities": {named: numbers for named, numbers in table.items() if numbers},
        "similarities_left_out": left_out,
        "told": told(found.numbers, found.chance, found.details),
    }
    found.files["alignment.npz"] = shown(bench)
    return found


def _values(means: dict[str, Mean], how: str, untrained: bool) -> dict[str, Mean]:
    """`phrase_means`, called as the numbers are."""
    found = {name: mean for name, mean in means.items() if not untrained or name in PHRASE_MEASURES}
    names = {f"{under}{name}": f"{under}{how}{name}" for under in OWN_AND_OTHER for name in PHRASE_MEASURES}
    return {f"{'untrained_' if untrained else ''}{names.get(name, name)}": mean for name, mean in found.items()}


def _phrases(bench: Bench, other_I: np.ndarray, models: tuple, found: Outcome, table: dict[str, dict[str, float]]) -> None:
    """Pointing and overlap of words' scores and of Grad-CAM, into `found` and `table`."""
    regions, own = bench.inputs.regions, bench.config.model.masking.similarity
    first = [captions[0] for captions in bench.collection.captions_of_image]

    def measured(score_CQN_of: Any, how: str) -> dict[str, Mean]:
        means: dict[str, Mean] = {}
        for model in models:
            means |= _values(phrase_means(score_CQN_of(model), regions, OWN_AND_OTHER), how, model is not bench.model)
        return means

    means: dict[str, Mean] = {}
    for named in table:
        if named.partition(":")[0] in WITHOUT_WORDS:
            continue
        of_words = measured(lambda model, named=named: scores(bench, first, other_I, named, model)[:, :2, 1:].numpy(), "")
        table[named] |= {name: mean.value for name, mean in of_words.items()}
        means |= of_words if named == own else {}
    for target, how in zip(TARGETS, list(HOWS)[1:], strict=True):
        if target == "similarity" or bench.config.model.captions:
            means |= measured(lambda model, target=target: phrase_maps(bench, first, other_I, target, model), how)
    chance = {name: means.pop(f"chance_{name}") for name in PHRASE_MEASURES}
    there = {name: mean for name, mean in means.items() if mean.value is not None}
    found.numbers |= {name: mean.value for name, mean in there.items()} | mean_intervals(there, bench.options.seed)
    for name, mean in chance.items():
        names = [f"{under}{how}{name}" for under in UNDER_PHRASES for how in HOWS]
        found.chance |= {name: mean.value for name in names if name in there}
    found.each |= {name: mean.value_I for name, mean in means.items()}
    found.each |= {f"{name}_count": mean.count_I for name, mean in means.items()}  # of phrases


def _classes(bench: Bench, models: tuple, found: Outcome, table: dict[str, dict[str, float]], left_out: dict[str, str]) -> None:
    """Segmentation by names, into `found` and `table`."""
    segments, own = bench.inputs.segments, bench.config.model.masking.similarity
    background, plain = background_of(bench.options.background), list(dict.fromkeys(named.partition(":")[0] for named in table))
    first = own if own not in WITHOUT_CLASSES else "global"
    labelled = {}
    for named in dict.fromkeys((first, "global", *plain)):
        if named in WITHOUT_CLASSES:
            left_out[f"{named}, of classes"] = WITHOUT_CLASSES[named]
            continue
        numbers = table.setdefault(named, {})
        for model in models:
            under = "" if model is bench.model else "untrained_"
            kinds = segmented(bench, Namer.of(bench, model, segments.classes, background, named))
            for kind, (confusion_KK, areas_I3K) in zip(KINDS, (kinds["all"], kinds["objects"]), strict=True):
                total_3K = areas_I3K.sum(axis=0)
                values = segmenting.measures(total_3K)
                numbers |= {f"{under}{kind}{name}": float(value) for name, value in values.items()}
                labelled[kind] = total_3K[2]
                if not under:
                    mixed = segmenting.shuffled(confusion_KK, background=not kind)
                    numbers |= {f"shuffled_{kind}{name}": value for name, value in (mixed or {}).items()}
                if named == first:
                    bounds = segmenting.measure_intervals(areas_I3K, bench.options.seed) if len(areas_I3K) > 1 else {}
                    found.numbers |= {f"{under}{kind}{name}": value for name, value in bounds.items()}
                    found.each[f"{under}{kind}areas"] = _of_all(bench, areas_I3K)
                if named == first and not under:
                    found.details[f"per_class{kind and '_objects'}"] = _per_class(total_3K, segments.classes, not kind)
    names = class_numbers().keys()
    found.numbers |= {name: value for name, value in table[first].items() if name in names}
    without_looking = {kind: segmenting.chances(labelled[kind]) for kind in labelled}
    found.chance |= {
        f"{under}{kind}{name}": max(of[how][name] for how in of)
        for under in UNDER_CLASSES
        for kind, of in without_looking.items()
        for name in MEASURES
    }
    found.details |= {
        "named_by": first,
        "background": background.told,
        "templates": list(TEMPLATES),
        "classes": len(segments.classes),
        "segmented": len(segments.there),
        "without_looking": {kind or "all": of for kind, of in without_looking.items()},
    }


def _of_all(bench: Bench, areas_I3K: np.ndarray) -> np.ndarray:
    """(I, 3, K) of the data's pictures from those of the segmented ones; 0 of the others."""
    found_I3K = np.zeros((len(bench.collection), *areas_I3K.shape[1:]), np.int64)
    found_I3K[bench.inputs.segments.there] = areas_I3K
    return found_I3K


def _per_class(areas_3K: np.ndarray, classes: tuple[str, ...], background: bool) -> list[dict[str, Any]]:
    names = [*(("background",) if background else ()), *classes]
    rows = zip(names, segmenting.ious(areas_3K).tolist(), areas_3K[2].tolist(), strict=True)
    return [{"class": name, "iou": None if iou != iou else iou, "pixels": pixels} for name, iou, pixels in rows]


def _reason(bench: Bench, name: str, found: Outcome) -> str:
    """Why a number is missing."""
    config, regions, segments = bench.config.model, bench.inputs.regions, bench.inputs.segments
    base = name.removesuffix("_low").removesuffix("_high")
    if regions is None:
        return NO_REGIONS
    if base in found.numbers:
        return "fewer than two pictures have it"
    if base in found.reasons:
        return found.reasons[base]
    if base in class_numbers():
        if segments is None or not segments.classes:
            return f"{regions.kind} has no classes of pixels"
        return "there is one class only" if segments.there else "no picture has classes of its pixels"
    if not regions.phrases:
        return "no phrase names a region"
    if "likelihood" in base:
        return f"a '{config.family}' model writes no captions"
    return f"{config.masking.similarity} has no scores of single words"


def depends(inputs: Inputs) -> dict[str, Any]:
    return {
        "regions": inputs.regions.digest if inputs.regions else None,
        "segments": inputs.segments.digest if inputs.segments else None,
        "similarity": list(inputs.options.similarity),
        "background": inputs.options.background,
    }


TASK = Task(
    name="alignment",
    title="Patches and words",
    meaning="A word's scores should be highest on what it names, and a patch nearest to the name of what it shows. Both are held "
    "against known regions, beside another picture's caption, shuffled names and untrained weights. Grad-CAM asks the same of "
    "gradients: which patches a word hangs on.",
    numbers=NUMBERS,
    headlines=(
        *(f"{under}{how}pointing" for how in HOWS for under in ("", "other_")),
        *("word_iou", "miou", "shuffled_miou", "untrained_miou", "pixel_accuracy"),
        *("objects_miou", "shuffled_objects_miou", "untrained_objects_miou"),
    ),
    run=run_alignment,
    files=("alignment.npz",),
    each=True,
    depends=depends,
)
