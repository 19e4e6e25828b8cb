"""Vision transformer with token dropping: hidden patches are left out before the first block, as in MAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.config import ImageEncoderConfig
from sycoca_ds.model.blocks import SelfBlock, run_blocks
from sycoca_ds.model.masking import take_patches


def patchify(image_BCHW: Tensor, patch_size: int) -> Tensor:
    """(B, 3, S, S) -> (B, N, P): patches in row-major order, each laid out (patch row, patch column, channel) as in MAE."""
    b, c, h, w = image_BCHW.shape
    rows, columns = h // patch_size, w // patch_size
    x = image_BCHW.reshape(b, c, rows, patch_size, columns, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, patch_size * patch_size * c)


def unpatchify(patch_BNP: Tensor, patch_size: int) -> Tensor:
    """(B, N, P) -> (B, 3, S, S), the inverse of `patchify` for square images."""
    b, n, p = patch_BNP.shape
    side = round(n**0.5)
    x = patch_BNP.reshape(b, side, side, patch_size, patch_size, p // patch_size**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, side * patch_size, side * patch_size)


class ImageEncoder(nn.Module):
    """ViT: patch embedding, [CLS] + positions, norm, pre-norm blocks, norm; linear projection to E.

    A patch embedding as `nn.Linear` on flattened patches is the usual strided convolution, and can be applied to the kept
    patches alone.
    """

    def __init__(self, config: ImageEncoderConfig, embed_dim: int):
        super().__init__()
        self.patch_embed = nn.Linear(config.patch_values, config.width, bias=False)
        self.cls_embedding = nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(config.patches + 1, config.width))
        self.ln_pre = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(SelfBlock(config.width, config.heads) for _ in range(config.layers))
        self.ln_post = nn.LayerNorm(config.width)
        self.proj = nn.Linear(config.width, embed_dim, bias=False)
        self.recompute = False

    def forward(self, patch_BNP: Tensor, keep_BK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes all patches, or the kept ones alone.

        Args:
            patch_BNP: patches of the normalised image.
            keep_BK: int64 numbers of the patches that are seen; None = all.

        Returns:
            ([CLS] output (B, D), patch outputs (B, K or N, D)), both after the last norm, before the projection.
        """
        x_BND = self.patch_embed(patch_BNP if keep_BK is None else take_patches(patch_BNP, keep_BK))
        place = self.position_embedding[1:]
        # as an embedding, whose backward is deterministic: that of indexing adds in whatever order its threads come
        x_BND = x_BND + (place if keep_BK is None else F.embedding(keep_BK, place))
        cls = (self.cls_embedding + self.position_embedding[0]).expand(len(x_BND), 1, -1)
        x = self.ln_pre(torch.cat([cls, x_BND], dim=1))
        x = self.ln_post(run_blocks(self.blocks, x, recompute=self.recompute))
        return x[:, 0], x[:, 1:]
