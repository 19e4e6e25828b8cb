"""Do attentive scores find the objects? `python benchmarks/masking_scores.py --checkpoint RUN --data TEST_FOLDER`

On the demo world the captions say which grid cells hold objects, so it is known which patches a good score puts first. Prints, for
every `masking.similarity`, the AUC: the chance that a patch of an object's cell scores above a patch of an empty cell of the same
picture (0.5 = the score knows nothing, below = it prefers the background).
"""

from __future__ import annotations

import argparse
import dataclasses
import re

import torch

from data_pipeline.world.scenes import PLACES
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.eval.collection import Collection
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
    for similarity in ("token_max", "centred_token_max", "global"):
        loaded.model.config = dataclasses.replace(loaded.config.model, masking=dataclasses.replace(masking, similarity=similarity))
        values = []
        for numbers, image_BCHW in pictures.batches(100):
            captions = [pictures.captions_of_image[number][0] for number in numbers]
            text_BL = torch.from_numpy(loaded.tokenizer.encode(captions, loaded.config.model.text.context_length))
            with torch.no_grad():
                scores = loaded.model("reconstruct", image_BCHW=normalise(image_BCHW), text_BL=text_BL)["scores_BN"]
            values += [auc(score, object_patches(caption, side)) for score, caption in zip(scores, captions, strict=True)]
        print(f"{similarity:<18} AUC {sum(values) / len(values):.3f} over {len(values)} pictures (step {loaded.state['step']})")


if __name__ == "__main__":
    main()
