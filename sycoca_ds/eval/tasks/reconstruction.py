"""Does the caption help to rebuild the picture? Text-guided masked image modelling with the right caption against a
wrong one.

For each image the hidden patches are chosen once, with its own caption; then they are rebuilt twice from the same kept
patches, once guided by the own caption and once by another image's. Only the guide differs. If the decoder ignored the
text, the gap would be zero. Legend: I images, B batch, N patches, P numbers of a patch.
"""

from __future__ import annotations

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_text
from data_pipeline.progress import Progress
from sycoca_ds.eval.bench import Bench
from sycoca_ds.eval.controls import gap_metrics, wrong_captions
from sycoca_ds.eval.intervals import HOW
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording


def mask_keys(bench: Bench) -> torch.Tensor:
    """(I,) int64: the keys of the pictures' random masks."""
    pictures = bench.collection.pictures
    return torch.tensor([int(sha256_text(f"{bench.options.seed} {picture.image_id}")[:15], 16) for picture in pictures])


def run_reconstruction(bench: Bench) -> Outcome:
    """L1 over hidden patches, guided by the own caption and by a wrong one; masks by attention and by chance."""
    if not bench.config.model.reconstructs:
        raise NotApplicable(
            f"a '{bench.config.model.family}' model with masked image modelling '{bench.config.model.masking.mim}' "
            "has no image decoder"
        )
    data = bench.collection
    other_I = wrong_captions(data.captions_of_image)
    first = [captions[0] for captions in data.captions_of_image]
    shown = set(bench.shown)
    error: dict[str, list[torch.Tensor]] = {name: [] for name in ("own", "other", "random_own", "random_other")}
    kept: dict[str, list[np.ndarray]] = {
        name: [] for name in ("number", "other", "hidden", "score", "own_pixels", "other_pixels", "own_l1", "other_l1")
    }
    key_I = mask_keys(bench)
    with Progress("rebuild hidden patches", total=2 * len(data), unit="images") as bar:
        for numbers, image in bench.batches():
            pixels, own = bench.pixels(image), bench.tokens([first[n] for n in numbers])
            wrong = bench.tokens([first[other_I[n]] for n in numbers])
            inputs = {"image_BCHW": pixels, "text_BL": own, "guide_BL": torch.cat([own, wrong])}
            inputs |= {"key_B": key_I[numbers].to(bench.device), "others": bench.others()}
            for prefix, mask_by in (("", "attention"), ("random_", "random")):
                out = bench.call("reconstruct", **inputs, mask_by=mask_by)
                (own_l1, other_l1), (own_BNP, other_BNP) = (out[name].chunk(2) for name in ("l1_B", "pixels_BNP"))
                error[f"{prefix}own"].append(own_l1.float().cpu())
                error[f"{prefix}other"].append(other_l1.float().cpu())
                bar.advance(len(numbers))
                if mask_by == "attention":
                    for row, number in enumerate(numbers):
                        if number in shown:
                            kept["number"].append(np.int64(number))
                            kept["other"].append(other_I[number])
                            for name, value in (
                                ("hidden", out["hidden_BN"]),
                                ("score", out["scores_BN"]),
                                ("own_pixels", own_BNP),
                                ("other_pixels", other_BNP),
                                ("own_l1", own_l1),
                                ("other_l1", other_l1),
                            ):
                                value = value[row].cpu()
                                kept[name].append((value if value.dtype == torch.bool else value.float()).numpy())
    errors = {name: torch.cat(values).numpy() for name, values in error.items()}
    if not all(np.isfinite(values).all() for values in errors.values()):
        raise UserError("reconstruction: the model's errors are not finite; the checkpoint is damaged or diverged")
    numbers = {
        **gap_metrics(errors["own"], errors["other"], seed=bench.options.seed),
        **{
            f"random_{name}": value
            for name, value in gap_metrics(errors["random_own"], errors["random_other"], seed=bench.options.seed).items()
        },
    }
    chance = {"gap": 0.0, "random_gap": 0.0, "better_share": 50.0, "random_better_share": 50.0}
    details = {
        "images": len(data),
        "hidden_patches": int(kept["hidden"][0].sum()),
        "patches": len(kept["hidden"][0]),
        "unit": "normalised pixels",
        "interval": HOW,
    }
    return Outcome(numbers, {}, chance, details, {"reconstruction.npz": {name: np.stack(values) for name, values in kept.items()}})


TASK = Task(
    name="reconstruction",
    title="Text-guided reconstruction",
    meaning="The patches of each image that match its caption best are hidden and rebuilt. Once the model may read the image's own "
    "caption, once another image's. Only that differs, so the gap is what the text contributes.",
    numbers={
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
    headlines=("gap", "own_l1", "other_l1", "better_share", "random_gap"),
    run=run_reconstruction,
    files=("reconstruction.npz",),
)
