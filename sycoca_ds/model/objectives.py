"""The losses. Each is written so that the mean over ranks of the local values, which is what DeepSpeed's gradient averaging
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
from torch.utils.checkpoint import checkpoint


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


def summed_over_ranks(x: Tensor) -> Tensor:
    """The sum over ranks of equally shaped tensors, without gradient. A collective."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def late_interaction_loss(
    patch_BNE: Tensor, token_BLE: Tensor, counted_BL: Tensor, key_B: Tensor, scale: Tensor, group: int
) -> Tensor:
    """FILIP's contrast (Yao et al. 2021, eq. 4 to 6) within groups of the global batch, computed for the local rows.

    A picture and a caption fit by the mean over patches of each patch's best token, and by the mean over tokens of each token's
    best patch. The groups are of neighbours in the order of the samples' keys, so they are the same however the batch is spread
    over ranks and micro-batches; the last one may be smaller.

    Args:
        patch_BNE, token_BLE: float32, L2-normalised, equal shapes on all ranks. counted_BL: bool, the tokens that count.
        key_B: int64, one a sample; scale: the factor of the logits, no gradient flows to it; group: pairs of a group.

    Returns:
        0-dim float32, the mean over the local rows and both directions.
    """
    patch_XNE, token_XLE, scale = gather_rows(patch_BNE), gather_rows(token_BLE), scale.detach()
    with torch.no_grad():
        key_X, counted_XL = gather_rows(key_B), gather_rows(counted_BL.to(torch.uint8)).bool()
        order_X = key_X.argsort(stable=True)
        place_X = order_X.argsort()
        first = (dist.get_rank() if world_size() > 1 else 0) * len(key_B)
        place_B = place_X[first : first + len(key_B)]
        start_B = place_B // group * group
        member_BG = start_B[:, None] + torch.arange(group, device=key_B.device)
        outside_BG = member_BG >= len(key_X)
        member_BG = order_X[member_BG.clamp(max=len(key_X) - 1)]

    def match(member_B: Tensor) -> tuple[Tensor, Tensor]:
        """How the local pictures fit one member's caption each, and the local captions one member's picture: (B,) each."""
        i2t_BNL = patch_BNE @ token_XLE[member_B].transpose(1, 2)
        i2t_B = i2t_BNL.masked_fill(~counted_XL[member_B][:, None, :], float("-inf")).amax(dim=2).mean(dim=1)
        t2i_BL = (token_BLE @ patch_XNE[member_B].transpose(1, 2)).amax(dim=2)
        return i2t_B, (t2i_BL * counted_BL).sum(dim=1) / counted_BL.sum(dim=1)

    # a member at a time, and once more in the backward pass: all at once would hold a group's features for every row
    found = [checkpoint(match, member_B, use_reentrant=False, preserve_rng_state=False) for member_B in member_BG.unbind(1)]
    logits = [(scale * torch.stack(way, dim=1)).masked_fill(outside_BG, float("-inf")) for way in zip(*found, strict=True)]
    return sum(F.cross_entropy(logits_BG, place_B - start_B) for logits_BG in logits) / 2


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
