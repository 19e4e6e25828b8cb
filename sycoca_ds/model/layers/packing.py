"""Captions without padding: the rows of all of them one after another, (T, D), and what is mixed within a caption alone.

Linear layers, norms and MLPs, nearly all of a text part's work, run on real rows only. Attention runs on them too where CUDA's
flash kernel takes sequences of unequal length (`torch.nn.attention.varlen`, torch 2.13); elsewhere, in float32 and on a CPU, on a
padded view (B, S, D) that is filled from the rows and read back, with causality or a mask for the pads.

T is known to the host from the labels' places, which the loader has found: on a GPU nothing waits for the lengths.

Legend: B captions, T rows of all, S the most that one may have, H heads, D width, d width of a head.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from sycoca_ds.model.layers.attention import attend, join_heads, split_heads, varlen_attention


def rows_multiple(device: torch.device) -> int:
    """What the number of rows is a multiple of: on a GPU 64, so that a run has few shapes and its products whole tiles; on a CPU no
    row is idle."""
    return 64 if device.type == "cuda" else 1


class _Moved(torch.autograd.Function):
    """Rows `at` of x; the gradient of each of its rows is that of the row `back` of the result, or none where it is not `held`.

    Both ways are gathers. Autograd's own backward of a gather adds, which takes longer, and on CUDA in whatever order threads come.
    """

    @staticmethod
    def forward(ctx, x: Tensor, at: Tensor, back: Tensor, held: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, held)
        return x.index_select(0, at)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        back, held = ctx.saved_tensors
        found = slope.index_select(0, back)
        return found if held is None else found.masked_fill_(~held[:, None], 0.0), None, None, None


@dataclass(frozen=True, eq=False)
class Packing:
    """Which rows belong to which caption: first all of the first caption, then all of the second, and so on.

    Where there are more rows than the captions have, the last ones are idle: they stand behind the last caption, which cannot see
    them, mean nothing, and nothing reads them.
    """

    count_B: Tensor
    """int64, rows of each caption."""
    used: int
    """Their sum, known to the host."""
    longest: int
    """S, at least the largest of them."""

    @functools.cached_property
    def rows(self) -> int:
        """T."""
        multiple = rows_multiple(self.count_B.device)
        return -(-self.used // multiple) * multiple

    @property
    def full(self) -> bool:
        """Whether the padded view is the rows as they are."""
        return self.rows == self.used == len(self.count_B) * self.longest

    @functools.cached_property
    def start_B(self) -> Tensor:
        """int64, the first row of each caption."""
        return self.count_B.cumsum(0) - self.count_B

    @functools.cached_property
    def caption_T(self) -> Tensor:
        """int64, whose row it is; an idle one is the last caption's."""
        number_T = torch.arange(self.rows, device=self.count_B.device)
        return torch.searchsorted(self.count_B.cumsum(0), number_T, right=True).clamp(max=len(self.count_B) - 1)

    @functools.cached_property
    def column_T(self) -> Tensor:
        """int64, its place within the caption; an idle one's goes on counting."""
        return torch.arange(self.rows, device=self.count_B.device) - self.start_B.index_select(0, self.caption_T)

    @functools.cached_property
    def place_T(self) -> Tensor:
        """int64, its place in the padded view, counted through it."""
        return self.caption_T * self.longest + self.column_T.clamp(max=self.longest - 1)

    @functools.cached_property
    def real_T(self) -> Tensor | None:
        """bool, False at idle rows; None if there are none."""
        return None if self.rows == self.used else torch.arange(self.rows, device=self.count_B.device) < self.used

    @functools.cached_property
    def held_BS(self) -> Tensor:
        """bool, where the padded view has a row of its caption."""
        return torch.arange(self.longest, device=self.count_B.device) < self.count_B[:, None]

    @functools.cached_property
    def row_X(self) -> Tensor:
        """int64 (B * S,), the row at each place of the padded view; a pad's is the caption's last, so that it is a finite one."""
        column_S = torch.arange(self.longest, device=self.count_B.device)
        row_BS = self.start_B[:, None] + torch.minimum(column_S, self.count_B[:, None] - 1)
        return row_BS.clamp(0, max(0, self.rows - 1)).flatten()

    @functools.cached_property
    def bounds(self) -> Tensor:
        """int32 (B + 1,): where captions begin and the last one ends, idle rows with it, as the flash kernel takes them."""
        return torch.cat([self.start_B, self.start_B.new_full((1,), self.rows)]).int()

    @property
    def most(self) -> int:
        """The most rows of a caption, idle ones counted as the last caption's."""
        return self.longest + self.rows - self.used

    def unpack(self, x_TD: Tensor) -> Tensor:
        """The padded view (B, S, D). Pads mean nothing, and no gradient comes from them."""
        if self.full:
            return x_TD.view(len(self.count_B), self.longest, -1)
        return _Moved.apply(x_TD, self.row_X, self.place_T, self.real_T).view(len(self.count_B), self.longest, -1)

    def pack(self, x_BSD: Tensor) -> Tensor:
        """The rows (T, D) of a padded view; the gradient of its pads is zero."""
        if self.full:
            return x_BSD.flatten(0, 1)
        return _Moved.apply(x_BSD.flatten(0, 1), self.place_T, self.row_X, self.held_BS.flatten())

    def of_captions(self, x_BD: Tensor) -> Tensor:
        """What is known of each caption, at each of its rows: (B, D) -> (T, D)."""
        return x_BD.index_select(0, self.caption_T)

    def mix(self, qkv_TX: Tensor, heads: int, mask_B1SS: Tensor | None = None) -> Tensor:
        """Causal attention within each caption, or as the mask has it: queries, keys and values (T, 3 D) -> (T, D)."""
        varlen = None if mask_B1SS is not None else varlen_attention(qkv_TX, heads, 3)
        if varlen is not None:
            q, k, v = qkv_TX.unflatten(1, (3, heads, -1)).unbind(1)
            return varlen(q, k, v, self.bounds, self.bounds, self.most, self.most, window_size=(-1, 0)).flatten(1)
        q, k, v = (split_heads(part, heads) for part in self.unpack(qkv_TX).chunk(3, dim=-1))
        return self.pack(join_heads(attend(q, k, v, mask_B1SS, causal=mask_B1SS is None)))

    def look(self, q_TD: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of each caption's rows to what stands beside it, a picture: (T, D)."""
        heads, keys = k_BHSd.shape[1:3]
        varlen = None if mask is not None else varlen_attention(q_TD, heads, 1)
        if varlen is not None:
            k, v = (x.transpose(1, 2).flatten(0, 1) for x in (k_BHSd, v_BHSd))
            bounds = torch.arange(0, len(k) + 1, keys, device=k.device, dtype=torch.int32)
            q = q_TD.unflatten(1, (heads, -1))
            return varlen(q, k, v, self.bounds, bounds, self.most, keys).flatten(1)
        return self.pack(join_heads(attend(split_heads(self.unpack(q_TD), heads), k_BHSd, v_BHSd, mask)))


@dataclass(frozen=True, eq=False)
class CaptionRows:
    """The rows of a batch of captions in each of the parts that read them (`TextEncoder.rows`)."""

    encoded: Packing
    """In the text encoder: a caption's tokens, then what the encoder puts behind them."""
    tokens: Packing
    """Its real tokens alone."""
    inputs: Packing
    """The tokens that have a next one: in the text decoder, whose rows are the labels', in the same order."""
    mask_B1SS: Tensor | None = None
    """bool, what sees what in the text encoder; None: causal."""

    def tokens_of(self, x_TD: Tensor) -> Tensor:
        """Of the text encoder's rows those of tokens."""
        return x_TD if self.encoded is self.tokens else _taken(x_TD, self.encoded, self.tokens)

    def inputs_of(self, x_TD: Tensor) -> Tensor:
        """Of the tokens' rows those with a next one."""
        return _taken(x_TD, self.tokens, self.inputs)


def _taken(x_TD: Tensor, have: Packing, want: Packing) -> Tensor:
    """The first rows of each caption, as many as `want` has of it."""
    row_T = have.start_B.index_select(0, want.caption_T) + want.column_T
    # idle rows may lie behind the end; of what is real no row is taken twice, so adding in the backward pass has no order
    return x_TD.index_select(0, row_T.clamp(max=have.rows - 1))
