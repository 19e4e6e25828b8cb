"""Vision transformer with token dropping: hidden patches are left out before the first block, as in MAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.config import ImageEncoderConfig
from sycoca_ds.model.layers.blocks import AttentionPooling, SelfBlock
from sycoca_ds.model.layers.products import LayerNorm, Linear
from sycoca_ds.model.layers.stacks import run_blocks


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
    """ViT: patch embedding, [CLS] + positions, norm, pre-norm blocks; then what the other parts read from it.

    A patch embedding as `nn.Linear` on flattened patches is the usual strided convolution, and can be applied to the kept
    patches alone.
    """

    def __init__(self, config: ImageEncoderConfig, embed_dim: int):
        super().__init__()
        self.patch_embed = Linear(config.patch_values, config.width, bias=False)
        self.cls_embedding = nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(config.patches + 1, config.width))
        self.ln_pre = LayerNorm(config.width)
        self.blocks = nn.ModuleList(SelfBlock(config.width, config.heads) for _ in range(config.layers))
        self.pool, self.averages, width = None, config.pooling == "mean", config.width
        if config.pooling == "attention":
            self.pool = AttentionPooling(embed_dim, config.pooling_heads, config.pooling_queries, config.width)
            width = embed_dim
        self.ln_post = LayerNorm(width)
        self.proj = Linear(width, embed_dim, bias=False)
        self.recompute = 0

    def forward(self, patch_BKP: Tensor, keep_BK: Tensor | None = None, alone: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The last block's outputs of [CLS] and of all patches, or of the kept ones.

        Args:
            patch_BKP: patches of the normalised image, only the kept ones if there is `keep_BK`.
            keep_BK: int64, their numbers; None = all N in order.
            alone: also return what [CLS] would be if the last block had shown it one patch alone (`SelfBlock.alone`).

        Returns:
            (B, 1 + K, D), before the last norm: `read` and `read_patches` take it from there; with `alone` also (B, K, D), without
            gradient.
        """
        place = self.position_embedding[1:]
        # as an embedding, whose backward is deterministic: that of indexing adds in whatever order its threads come
        x_BKD = self.patch_embed(patch_BKP) + (place if keep_BK is None else F.embedding(keep_BK, place))
        cls = (self.cls_embedding + self.position_embedding[0]).expand(len(x_BKD), 1, -1)
        x_BSD, last_BSD = run_blocks(self.blocks, self.ln_pre(torch.cat([cls, x_BKD], dim=1)), recompute=self.recompute)
        if not alone:
            return x_BSD
        with torch.no_grad():
            return x_BSD, self.blocks[-1].alone(last_BSD[:, 1:], last_BSD[:, :1])

    def read(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """(global output (B, D), tokens for the text decoder (B, K or Q - 1, D)); with attention pooling E wide, not D."""
        x_BSD = self.ln_post(x_BSD if self.pool is None else self.pool(x_BSD))
        return x_BSD[:, 1:].mean(dim=1) if self.averages else x_BSD[:, 0], x_BSD[:, 1:]

    def read_patches(self, x_BSD: Tensor) -> Tensor:
        """Normalised outputs of the patches (B, K, D), for the image decoder."""
        return (self.ln_post if self.pool is None else self.pool.ln_other)(x_BSD[:, 1:])

    def project(self, x: Tensor) -> Tensor:
        """Global outputs in the shared space, float32 and L2-normalised: (.., D) -> (.., E)."""
        return F.normalize(self.proj(x).float(), dim=-1)

    def project_patches(self, x_BSD: Tensor) -> Tensor:
        """Every patch in the shared space, float32 and L2-normalised, for the masking scores: (B, K, E)."""
        x_BKD = x_BSD[:, 1:]
        return self.project(self.ln_post(x_BKD if self.pool is None else self.pool.alone(x_BKD)))
