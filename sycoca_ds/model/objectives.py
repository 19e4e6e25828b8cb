"""The three losses. Each is written so that the mean over ranks of the local values, which is what DeepSpeed's gradient averaging
computes, is exactly the loss of the global batch. Over micro-batches that holds for captioning and reconstruction; the contrast
needs all features of the step at once: engine/accumulation.py."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# Not later: imported while a process group exists, this module keeps it for ever as a default argument. A group that outlives
# `destroy_process_group` keeps gloo's threads, and one of those aborts the process now and then at its end (pytorch issue 190489).
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(x_BE: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient to every rank: (B, E) -> (W * B, E).

    `torch.distributed.nn` sums the gradient over ranks in its backward; `deepspeed.comm.all_gather` has none and would lose
    the cross terms.
    """
    if world_size() == 1:
        return x_BE
    return torch.cat(all_gather(x_BE.contiguous()), dim=0)


def contrastive_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Symmetric InfoNCE over the global batch, computed for the local rows (ITC, paper eq. 3; CLIP).

    Args:
        image_BE, text_BE: float32, L2-normalised, equal batch sizes on all ranks.
        scale: float32, exp of the logit scale, shape [1] or [].

    Returns:
        (loss, {"i2t_accuracy", "t2i_accuracy"}: share of local rows whose best match is their own, no gradient).
    """
    rank = dist.get_rank() if world_size() > 1 else 0
    own_B = torch.arange(len(image_BE), device=image_BE.device) + rank * len(image_BE)
    i2t = scale * image_BE @ gather_rows(text_BE).T
    t2i = scale * text_BE @ gather_rows(image_BE).T
    loss = (F.cross_entropy(i2t, own_B) + F.cross_entropy(t2i, own_B)) / 2
    with torch.no_grad():
        accuracy = {
            name: (logits.argmax(dim=1) == own_B).float().mean() for name, logits in (("i2t_accuracy", i2t), ("t2i_accuracy", t2i))
        }
    return loss, accuracy


def label_count(labelled: Tensor, micro_batches: int) -> Tensor:
    """What a micro-batch's summed cross entropy is divided by, 0-dim float32: tokens of the global step / (ranks * micro-batches).

    Captions differ in length from rank to rank and from micro-batch to micro-batch; a mean of their means would weight tokens by
    where they are. A collective: every rank calls it once a step.

    Args:
        labelled: 0-dim, real next tokens of this rank in all its micro-batches of the step.
    """
    count, world = labelled.float(), world_size()
    if world > 1:
        dist.all_reduce(count)
    return count / (world * micro_batches)


def masked_l1(pixels_BNP: Tensor, target_BNP: Tensor, hidden_BN: Tensor) -> Tensor:
    """L1 over the hidden patches of each image (TG-MIM, paper eq. 5-6): (B,) float32.

    Every image hides the same number of patches, so the mean of this over a batch is the mean over its hidden patches.
    """
    error_BN = (pixels_BNP.float() - target_BNP.float()).abs().mean(dim=2)
    return (error_BN * hidden_BN).sum(dim=1) / hidden_BN.sum(dim=1)


def patch_moments(patch_BNP: Tensor) -> tuple[Tensor, Tensor]:
    """Each patch's mean and deviation (B, N, 1), float32, as MAE's norm_pix_loss takes them: unbiased variance + 1e-6."""
    patch_BNP = patch_BNP.float()
    return patch_BNP.mean(dim=2, keepdim=True), (patch_BNP.var(dim=2, keepdim=True) + 1e-6).sqrt()
