"""The three losses. Each is written so that the mean over ranks of the local value, which is what DeepSpeed's gradient
averaging computes, is exactly the loss of the global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(x_BE: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient to every rank: (B, E) -> (W * B, E).

    `torch.distributed.nn` sums the gradient over ranks in its backward; `deepspeed.comm.all_gather` has none and would lose
    the cross terms.
    """
    if world_size() == 1:
        return x_BE
    from torch.distributed.nn.functional import all_gather

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


def captioning_loss(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Next-token cross entropy, a mean over the real tokens of the global batch (IC, paper eq. 4).

    Captions differ in length from rank to rank: a mean of rank means would weight tokens by rank. So the local sum is divided
    by the global count and multiplied by the world size, which the averaging over ranks takes away again.

    Args:
        logits_MV: logits at the M real positions of this rank, any float dtype.
        target_M: int64 next tokens.
    """
    total = F.cross_entropy(logits_MV.float(), target_M, reduction="sum")
    count = torch.tensor(float(len(target_M)), device=total.device)
    world = world_size()
    if world > 1:
        dist.all_reduce(count)
    return total * world / count


def masked_l1(pixels_BNP: Tensor, target_BNP: Tensor, hidden_BN: Tensor) -> Tensor:
    """L1 over the hidden patches of each image (TG-MIM, paper eq. 5-6): (B,) float32.

    Every image hides the same number of patches, so the mean of this over a batch is the mean over its hidden patches.
    """
    error_BN = (pixels_BNP.float() - target_BNP.float()).abs().mean(dim=2)
    return (error_BN * hidden_BN).sum(dim=1) / hidden_BN.sum(dim=1)
