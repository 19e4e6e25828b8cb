"""Do attentive scores find objects, and do they find those that the caption names?

    python benchmarks/masking_scores.py --checkpoint RUN --data TEST_FOLDER

On the demo world the captions say which grid cells hold objects, so it is known which patches a good score puts first. Prints, for
every `masking.similarity`, the AUC: the chance that a patch of an object's cell scores above a patch of an empty cell of the same
picture (0.5 = the score knows nothing, below = it prefers the background); the same AUC with the scores under another picture's
caption, which tells finding objects from finding what is named; and what a run says of its masks (engine/monitoring/attending.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import re

import torch

from data_pipeline.world.drawn.demo_scenes import PLACES
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.controls import wrong_captions
from sycoca_ds.eval.masking.attending import attending
from sycoca_ds.model.pixels import normalise


def object_patches(caption: str, side: int) -> torch.Tensor:
    """bool (side * side,): patches of the cells that a demo caption names."""
    cells = {index for index, place in enumerate(PLACES) if re.search(rf"{place}\b", caption)}
    each = side // 3
    return torch.tensor([(row // each) * 3 + column // each in cells for row in range(side) for column in range(side)])


def auc(score_N: torch.Tensor, positive_N: torch.Tensor) -> float:
    """Share of (positive, negative) pairs in the right order, ties half."""
    difference = score_N[positive_N][:, None] - score_N[~positive_N][None, :]
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    loaded = load_for_inference(options.checkpoint)
    image = loaded.config.model.image
    pictures = Collection(options.data, image.image_size)
    side, masking = image.image_size // image.patch_size, loaded.config.model.masking
    other_I = wrong_captions(pictures.captions_of_image)
    for similarity in ("token_max", "centred_token_max", "global"):
        loaded.model.config = dataclasses.replace(loaded.config.model, masking=dataclasses.replace(masking, similarity=similarity))
        found: list[torch.Tensor] = []
        values: dict[str, list[float]] = {"own": [], "another": []}
        for numbers, image_BCHW in pictures.batches(100):
            own = [pictures.captions_of_image[number][0] for number in numbers]
            other = [pictures.captions_of_image[other_I[number]][0] for number in numbers]
            text_XL = torch.from_numpy(loaded.tokenizer.encode(own + other, loaded.config.model.text.context_length))
            with torch.no_grad():
                score_BCN = loaded.model("masking_scores", image_BCHW=normalise(image_BCHW), text_CBL=text_XL.unflatten(0, (2, -1)))
            found.append(score_BCN)
            for place, name in enumerate(values):
                rows = zip(score_BCN[:, place], own, strict=True)
                values[name] += [auc(score_N, object_patches(caption, side)) for score_N, caption in rows]
        masks = attending(*torch.cat(found).unbind(1), masking)
        print(
            f"{similarity:<18} AUC {sum(values['own']) / len(pictures):.3f}, under another caption "
            f"{sum(values['another']) / len(pictures):.3f}; masks: overlap {masks['caption_overlap']:.3f}, ignoring "
            f"{masks['caption_ignored']:.2f}, own caption higher {masks['own_caption_higher']:.3f}, position bias "
            f"{masks['position_bias']:.2f} ({len(pictures)} pictures, step {loaded.state['step']})"
        )


if __name__ == "__main__":
    main()
