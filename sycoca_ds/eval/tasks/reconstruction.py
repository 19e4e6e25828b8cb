"""Does the caption help to rebuild the picture? Text-guided masked image modelling with the right caption against a
wrong one.

For each image the hidden patches are chosen once, with its own caption; then they are rebuilt twice from the same kept
patches, once guided by the own caption and once by another image's. Only the guide differs. If the decoder ignored the
text, the gap would be zero. Legend: I images, B batch, N patches, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_text
from sycoca_ds.eval.masking.gaps import MASKS, errors_by_kind
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.cache import Arrays
from sycoca_ds.eval.stats.controls import gap_metrics, wrong_captions
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording


def mask_keys(bench: Bench) -> torch.Tensor:
    """(I,) int64: the keys of the pictures' random masks."""
    pictures = bench.collection.pictures
    return torch.tensor([int(sha256_text(f"{bench.options.seed} {picture.image_id}")[:15], 16) for picture in pictures])


@dataclass(frozen=True)
class Guides:
    """What pictures are rebuilt by: the own caption and another picture's."""

    first: list[str]
    other_I: np.ndarray
    key_I: torch.Tensor
    others: tuple[torch.Tensor, int] | None

    @classmethod
    def given(cls, bench: Bench, first: Sequence[str], other_I: np.ndarray):
        others = bench.others()
        return cls(list(first), other_I, mask_keys(bench), others and (others[0].cpu(), others[1]))

    def of(self, bench: Bench, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, dict]:
        """(tokens of the own captions, of the others, what else the model's `reconstruct` takes)."""
        own_BL, other_BL = (bench.tokens([self.first[n] for n in of]) for of in (numbers, self.other_I[numbers]))
        others = self.others and (self.others[0].to(bench.device), self.others[1])
        return (
            own_BL,
            other_BL,
            {
                "image_BCHW": bench.images(numbers),
                "key_B": self.key_I[numbers].to(bench.device),
                "others": others,
            },
        )

    def rebuilt(self, bench: Bench, numbers: list[int], mask_by: str) -> dict[str, torch.Tensor]:
        """What `reconstruct` gives, with both guides one behind the other."""
        own_BL, other_BL, inputs = self.of(bench, numbers)
        return bench.call("reconstruct", text_BL=own_BL, guide_BL=torch.cat([own_BL, other_BL]), mask_by=mask_by, **inputs)


@dataclass(frozen=True)
class Errors(Guides):
    """Of all hidden patches, and of each kind of patch where regions are known: (B, M masks, G guides, K kinds)."""

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        found, regions, kinds = {}, bench.inputs.regions, []
        for prefix, mask_by in MASKS.items():
            out = self.rebuilt(bench, numbers, mask_by)
            own_l1, other_l1 = out["l1_B"].chunk(2)
            found |= {f"{prefix}own": own_l1.float().cpu().numpy(), f"{prefix}other": other_l1.float().cpu().numpy()}
            if regions is not None:
                kinds.append(errors_by_kind(out, bench.config.model.masking, regions, numbers))
        return found | ({"kind_error": torch.stack(kinds, dim=1).float().cpu().numpy()} if kinds else {})


def rebuilding_errors(bench: Bench) -> Arrays:
    """What `Errors` gives of all images; asked once, for every task that looks at it. UserError: no wrong captions."""

    def ask() -> Arrays:
        captions, regions = bench.collection.captions_of_image, bench.inputs.regions
        guides = Errors.given(bench, [own[0] for own in captions], wrong_captions(captions))
        key = {"what": "errors of rebuilding", "seed": bench.options.seed, "regions": regions.digest if regions else None}
        return bench.map_images(guides, "rebuild hidden patches", key)

    return bench.once("errors of rebuilding", ask)


@dataclass(frozen=True)
class Shown(Guides):
    """What the report shows of some pictures, by their place among them."""

    shown: list[int]

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        own = [self.shown[number] for number in numbers]
        out = self.rebuilt(bench, own, "attention")
        (own_l1, other_l1), (own_BNP, other_BNP) = (out[name].chunk(2) for name in ("l1_B", "pixels_BNP"))
        found = {
            "score": out["scores_BN"],
            "own_pixels": own_BNP,
            "other_pixels": other_BNP,
            "own_l1": own_l1,
            "other_l1": other_l1,
        }
        return {
            "number": np.array(own),
            "other": self.other_I[own],
            "hidden": out["hidden_BN"].cpu().numpy(),
            **{name: value.float().cpu().numpy() for name, value in found.items()},
        }


def run_reconstruction(bench: Bench) -> Outcome:
    """L1 over hidden patches, guided by the own caption and by a wrong one; masks by attention and by chance."""
    if not bench.config.model.reconstructs:
        raise NotApplicable(
            f"a '{bench.config.model.family}' model with masked image modelling '{bench.config.model.masking.mim}' "
            "has no image decoder"
        )
    data = bench.collection
    try:
        other_I = wrong_captions(data.captions_of_image)
    except UserError as error:
        raise NotApplicable(str(error)) from error
    guides = Guides.given(bench, [captions[0] for captions in data.captions_of_image], other_I)
    errors = {name: value_I for name, value_I in rebuilding_errors(bench).items() if name != "kind_error"}
    numbers = {
        **gap_metrics(errors["own"], errors["other"], seed=bench.options.seed),
        **{
            f"random_{name}": value
            for name, value in gap_metrics(errors["random_own"], errors["random_other"], seed=bench.options.seed).items()
        },
    }
    showing = Shown(guides.first, other_I, guides.key_I, guides.others, bench.shown)
    key = {"what": "rebuilt pictures", "data": data.digest, "seed": bench.options.seed, "shown": bench.shown}
    kept = bench.map(showing, len(bench.shown), "rebuild pictures to show", "images", key)
    chance = {"gap": 0.0, "random_gap": 0.0, "better_share": 50.0, "random_better_share": 50.0}
    each = {f"{name}_l1": value_I for name, value_I in errors.items()}
    each |= {f"{prefix}better_share": 100.0 * (errors[f"{prefix}own"] < errors[f"{prefix}other"]) for prefix in ("", "random_")}
    details = {
        "images": len(data),
        "hidden_patches": int(kept["hidden"][0].sum()),
        "patches": len(kept["hidden"][0]),
        "unit": "normalised pixels",
        "interval": HOW,
    }
    return Outcome(numbers, {}, chance, details, {"reconstruction.npz": kept}, each)


TASK = Task(
    name="reconstruction",
    title="Text-guided reconstruction",
    meaning="The patches of each image that match its caption best are hidden and rebuilt. Once the model may read the image's own "
    "caption, once another image's. Only that differs, so the gap is what the text contributes.",
    numbers={
        "own_l1": Wording("L1, own caption", "", "mean error of the hidden pixels in normalised units; lower is better"),
        "other_l1": Wording(
            "L1, wrong caption", "", "the same images and hidden patches, guided by another image's caption", control=True
        ),
        "gap": Wording("Gap", "%", "how far the error with the own caption lies below that with the wrong one"),
        "gap_low": Wording("Gap, lower bound", "%", "2.5 % quantile over resampled images"),
        "gap_high": Wording("Gap, upper bound", "%", "97.5 % quantile over resampled images"),
        "better_share": Wording("Images won", "%", "images that the own caption rebuilds better than the wrong one"),
        "random_own_l1": Wording("L1, own caption, random mask", "", "as above with patches hidden at random", control=True),
        "random_other_l1": Wording("L1, wrong caption, random mask", "", "as above with patches hidden at random", control=True),
        "random_gap": Wording(
            "Gap, random mask", "%", "the gap where chance, not the caption, chooses what is hidden", control=True
        ),
        "random_gap_low": Wording("Gap, random mask, lower bound", "%", "2.5 % quantile over resampled images"),
        "random_gap_high": Wording("Gap, random mask, upper bound", "%", "97.5 % quantile over resampled images"),
        "random_better_share": Wording("Images won, random mask", "%", "images that the own caption rebuilds better", control=True),
    },
    headlines=("gap", "own_l1", "other_l1", "better_share", "random_gap"),
    run=run_reconstruction,
    files=("reconstruction.npz",),
    each=True,
)
