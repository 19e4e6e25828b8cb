"""A step of several micro-batches that equals the step of one batch as large as all of them.

A mean of the micro-batches' own losses would not: the contrast would see a part of the pairs, and tokens of short captions would
weigh more. So the features of all micro-batches are computed first, without gradient; the contrast of the whole step gives the
slope of each feature; then every micro-batch runs forward and backward with those slopes in place of its own contrast (GradCache,
Gao et al. 2021). Only features are kept, never logits or activations of more than one micro-batch.
"""

from __future__ import annotations

from typing import Any

import torch

from sycoca_ds.model.objectives import label_count, summed_over_ranks, world_size
from sycoca_ds.model.text_encoder import real_tokens


def shared_inputs(engine, micro_batches: list[dict[str, Any]], eot_id: int) -> list[dict[str, Any]]:
    """What each micro-batch's `train` call needs to know of the whole step; empty dicts for a step of one, and for
    questions.

    Every rank calls it at every step, with equally many micro-batches of equal sizes.

    Args:
        engine: DeepSpeed engine of a `SyCoCa`.
        micro_batches: the step's `image_BCHW`, `text_BL`, `label_at_M` and `key_B` on the device.
    """
    k = len(micro_batches)
    if k == 1 or "answer_AL" in micro_batches[0]:  # a mean over questions, of which all have equally many, is one over their means
        return [{} for _ in micro_batches]
    labelled = torch.stack([real_tokens(micro["text_BL"], eot_id)[:, 1:].sum() for micro in micro_batches]).sum()
    share = label_count(labelled, k)
    model = getattr(engine, "module", engine)
    if not (model.loss.itc or model.loss.late_interaction or model._looks_at_others):
        # captions alone: no pair matters to another; the contrast that weighs nothing is told of each micro-batch
        return [{"labels_a_share": share} for _ in micro_batches]
    with torch.no_grad():
        wanted = ("image_BCHW", "text_BL", "label_at_M")
        found = [engine("features", **{name: micro[name] for name in wanted if name in micro}) for micro in micro_batches]
        sums = [features.pop("total_E") for features in found if "total_E" in features]
        features = {name: torch.cat([each[name] for each in found]) for name in found[0]}
        contrast = engine("contrast", **features, key_B=torch.cat([micro["key_B"] for micro in micro_batches]))
    more = {"labels_a_share": share}
    if sums:
        pictures = world_size() * sum(len(micro["text_BL"]) for micro in micro_batches)
        more["others"] = summed_over_ranks(torch.stack(sums).sum(dim=0)), pictures
    # The engine divides every micro-batch's loss by k. A feature belongs to one micro-batch, so its slope is multiplied by k; the
    # logit scale is in each of them, so a k-th of its slope is what each gets: k / k = 1.
    sizes = [len(micro["text_BL"]) for micro in micro_batches]
    slopes = [name for name in contrast if "_grad_B" in name]
    parts = zip(*((k * contrast.pop(name)).split(sizes) for name in slopes), strict=True)
    return [{"contrast": contrast | dict(zip(slopes, own, strict=True)), **more} for own in parts]
