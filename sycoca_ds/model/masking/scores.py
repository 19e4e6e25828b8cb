"""How well each patch of a picture fits its caption, as pure functions on tensors (paper section 3.3, and what else was tried).

Each kind of score is put together from these by `SyCoCa`, which has the features. B pictures, L tokens, N patches, E the shared
space. A token's scores (B, L, N) come first; `best_match` or `mean_match` makes one score a patch of them (B, N), float32. No
gradient flows through any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def counted_tokens(text_BL: Tensor, real_BL: Tensor, left_out_V: Tensor) -> Tensor:
    """The tokens that count: real ones whose id is not left out; of a caption that has none of these, all real ones.

    Args:
        text_BL: int64 ids; real_BL: bool, False at pads; left_out_V: bool, by id.

    Returns:
        bool (B, L), at least one True in a row that has a real token.
    """
    found_BL = real_BL & ~left_out_V[text_BL]
    return torch.where(found_BL.any(dim=1, keepdim=True), found_BL, real_BL)


@torch.no_grad()
def products(token_BLE: Tensor, patch_BNE: Tensor) -> Tensor:
    """<token_j, patch_i> of L2-normalised embeddings: (B, L, N) float32."""
    return token_BLE.float() @ patch_BNE.float().transpose(1, 2)


@torch.no_grad()
def centred_over_patches(score_BLN: Tensor) -> Tensor:
    """Each token's mean over the picture's patches taken off: how much better than the picture's average a patch fits.

    In <p_i - mean(p), t_j> the length of p_i - mean(p) is common to all tokens, and the maximum over many tokens follows it: it
    finds what stands out, whatever the caption says.
    """
    return score_BLN - score_BLN.mean(dim=2, keepdim=True)


@torch.no_grad()
def centred_over_pictures(score_BLN: Tensor, token_BLE: Tensor, other_BE: Tensor) -> Tensor:
    """Each token's mean over the patches of other pictures taken off: a token close to every patch of every picture, a hub, then
    wins no maximum. The correction is that of cross-domain similarity (CSLS, Conneau et al. 2018) with all patches as neighbours.

    Args:
        other_BE: for each picture the mean of the other pictures' patches (`mean_of_others`).
    """
    return score_BLN - token_BLE.float() @ other_BE.float()[:, :, None]


@torch.no_grad()
def mean_of_others(own_BE: Tensor, total_E: Tensor, pictures: int, patches: int) -> Tensor:
    """Mean over the patches of all pictures but one, for each of B pictures: (B, E). Zero where there is no other picture.

    Args:
        own_BE: sum over each picture's patches; total_E: sum over the patches of all `pictures`, of `patches` each.
    """
    return (total_E - own_BE) / max(1, (pictures - 1) * patches) if pictures > 1 else torch.zeros_like(own_BE)


@torch.no_grad()
def best_match(score_BLN: Tensor, counted_BL: Tensor) -> Tensor:
    """The maximum over the tokens that count (paper eq. 7)."""
    return score_BLN.masked_fill(~counted_BL[:, :, None], float("-inf")).amax(dim=1)


@torch.no_grad()
def mean_match(score_BLN: Tensor, counted_BL: Tensor) -> Tensor:
    """The mean over the tokens that count."""
    weight_BL1 = counted_BL[:, :, None].float()
    return (score_BLN * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1)


@torch.no_grad()
def saliency(patch_BNE: Tensor) -> Tensor:
    """Each patch's distance from the mean of its picture's patches. It knows nothing of any caption."""
    patch_BNE = patch_BNE.float()
    return (patch_BNE - patch_BNE.mean(dim=1, keepdim=True)).norm(dim=2)
