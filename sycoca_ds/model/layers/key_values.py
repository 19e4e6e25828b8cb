"""What generation one token at a time keeps: keys and values, and who sees which of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sycoca_ds.model.layers.attention import attend


class Places:
    """Which tokens each of R texts sees while they grow by one token a step: K = R / B texts for each of B images in a row.

    The texts of an image share one row of slots, K for each step. A token stays in its slot; a text that goes on as a copy of
    another one sees that one's slots, so that beams change places without a move of keys and values.
    """

    def __init__(self, images: int, texts: int, steps: int, device: torch.device) -> None:
        self.images, self.texts, self.steps, self.step = images, texts, steps, 0
        self.seen_BKS: Tensor | None = None
        """Bool (B, K, T * K); None: one text an image, which sees all before it."""
        if texts > 1:
            self.seen_BKS = torch.eye(texts, dtype=torch.bool, device=device).repeat(images, 1, steps)
            self.seen_BKS[:, :, texts:] = False
            self._own_KK = torch.eye(texts, dtype=torch.bool, device=device)

    def begin(self) -> None:
        """The next token's slots: a text sees its own."""
        if self.seen_BKS is not None:
            self.seen_BKS[:, :, self.step * self.texts : (self.step + 1) * self.texts] = self._own_KK

    def mask(self) -> Tensor | None:
        """Bool (B, 1, K, slots so far) for attention; None: all are seen."""
        return None if self.seen_BKS is None else self.seen_BKS[:, None, :, : (self.step + 1) * self.texts]

    def reorder(self, index_R: Tensor) -> None:
        """Text r goes on as text `index_R[r]` of the same image was."""
        if self.seen_BKS is not None:
            self.seen_BKS = self.seen_BKS.flatten(0, 1).index_select(0, index_R).view_as(self.seen_BKS)

    def keep(self, index_B: Tensor) -> None:
        """Only these images' texts go on."""
        self.images = len(index_B)
        if self.seen_BKS is not None:
            self.seen_BKS = self.seen_BKS.index_select(0, index_B)


class KeyValues:
    """Keys and values (B, heads, T * K, d) of a block, for generation one token at a time; room for all of them is taken once.

    On a CPU they are float32 whatever the model: `attend` would turn them into that at every token.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keeps the next token's keys and values and mixes what each text sees: (R, heads, 1, d) each and out."""
        places, (rows, heads, _, width) = self.places, q.shape
        slots = places.steps * places.texts
        if self.k is None:
            dtype = torch.float32 if q.device.type == "cpu" else q.dtype
            self.k, self.v = (q.new_empty(places.images, heads, slots, width, dtype=dtype) for _ in range(2))
        now = slice(places.step * places.texts, (places.step + 1) * places.texts)
        by_image = (places.images, places.texts, heads, width)
        for room, new in ((self.k, k), (self.v, v)):
            room[:, :, now] = new.reshape(by_image).transpose(1, 2)
        q_BHKd = q.reshape(by_image).transpose(1, 2)
        mixed = attend(q_BHKd, self.k[:, :, : now.stop], self.v[:, :, : now.stop], places.mask())
        return mixed.transpose(1, 2).reshape(rows, heads, 1, width)

    def keep(self, index_B: Tensor) -> None:
        """Only these images' texts go on."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k.index_select(0, index_B), self.v.index_select(0, index_B)
