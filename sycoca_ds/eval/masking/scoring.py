"""What a model is asked of a collection's pictures: scores of their patches under their own caption, under another picture's and
under none, and of the words of each phrase.

Legend: B batch, C the three conditions, N patches, L text tokens, Q most phrases of one picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sycoca_ds.eval.regions.patches import Regions

WITHOUT_WORDS = ("saliency", "global")
"""Values of `masking.similarity` that know no single words: the model has no `token_scores` of them."""
CONDITIONS = ("own", "other", "no_text")
"""The picture's own caption, another picture's, the empty one ([SOT][EOT])."""


class Scorer:
    """Asks for the scores of some pictures.

    Args:
        captions: the first caption of each picture.
        other_I: for each picture the one whose caption it is given as another one.
        regions: with phrases that are looked for, or None.
        encode: captions -> (B, L) ids on the host, of one length for all in a call.
        eot_id: of <end_of_text>.
    """

    def __init__(
        self,
        captions: Sequence[str],
        other_I: Sequence[int],
        regions: Regions | None,
        encode: Callable[[list[str]], Tensor],
        eot_id: int,
    ):
        self.captions, self.other_I, self.encode, self.eot_id = captions, other_I, encode, eot_id
        self.pictures = regions.pictures if regions is not None else ()
        self.phrases = regions.phrases if regions is not None else 0

    def __call__(
        self, call: Callable[..., Tensor], numbers: Sequence[int], image_BCHW: Tensor, by_token: bool = True, **inputs
    ) -> Tensor:
        """(B, C, 1 + Q, N) float32: the masking score of each patch, then the best score of each phrase's tokens; NaN where a
        picture has fewer phrases.

        Under another caption a phrase is one of that caption's, or, where none is known, all its words; under none, [SOT] and
        [EOT].

        Args:
            call: the model. inputs: what else both of its tasks take.
            by_token: False leaves phrases out, with Q = 0; the model refuses them for `WITHOUT_WORDS`.
        """
        own, other = [self.captions[n] for n in numbers], [self.captions[self.other_I[n]] for n in numbers]
        host_CBL = self.encode([*own, *other, *[""] * len(own)]).unflatten(0, (len(CONDITIONS), -1))
        text_CBL = host_CBL.to(image_BCHW.device)
        given = {"image_BCHW": image_BCHW, "text_CBL": text_CBL, **inputs}
        if not by_token or not self.phrases:
            return call("masking_scores", **given).float()[:, :, None]
        found = call("token_scores", **given)
        score_BCN, token_BCLN = [found["score_BCN"].float()], found["token_BCLN"].float()
        for words_CBL in self.words(numbers, host_CBL).to(image_BCHW.device).unbind(2):
            words_BCL = words_CBL.transpose(0, 1)
            best_BCN = token_BCLN.masked_fill(~words_BCL[..., None], -math.inf).amax(2)
            score_BCN.append(best_BCN.masked_fill(~words_BCL.any(2)[..., None], math.nan))
        return torch.stack(score_BCN, dim=2)

    def words(self, numbers: Sequence[int], text_CBL: Tensor) -> Tensor:
        """(C, B, Q, L) bool: the tokens that stand for each phrase of each picture under each condition."""
        words_CBQL = torch.zeros(*text_CBL.shape[:2], self.phrases, text_CBL.shape[2], dtype=torch.bool)
        for row, number in enumerate(numbers):
            own, other = self.pictures[number], self.pictures[self.other_I[number]]
            for phrase in range(len(own.phrases) if own is not None else 0):
                words_CBQL[0, row, phrase, list(own.phrases[phrase].places)] = True
                if other is not None and other.phrases:
                    words_CBQL[1, row, phrase, list(other.phrases[phrase % len(other.phrases)].places)] = True
                else:
                    end = self._end(text_CBL[1, row])
                    words_CBQL[1, row, phrase, 1 : max(2, end)] = True  # of no words, [EOT]
                words_CBQL[2, row, phrase, : self._end(text_CBL[2, row]) + 1] = True
        return words_CBQL

    def _end(self, text_L: Tensor) -> int:
        """Where [EOT] is."""
        return int((text_L == self.eot_id).nonzero()[0])
