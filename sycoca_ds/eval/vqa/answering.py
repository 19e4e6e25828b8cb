"""What the model says to questions, only ever one of the candidates.

Legend: Q questions, C candidates, B a batch of questions, L tokens.
"""

from __future__ import annotations

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.progress import Progress
from sycoca_ds.data.tokenizer import trim
from sycoca_ds.eval.bench import Bench
from sycoca_ds.eval.vqa.items import Asked
from sycoca_ds.model.generation import Choices, Decoding


class Answerer:
    """Answers to questions by one model.

    `rank`: the candidate with the largest likelihood, the sum of its tokens' log-probabilities with [EOT], among those whose first
    token is likeliest (ALBEF, BLIP). `generate`: token by token along a tree of the candidates, greedily or by beam search.

    Raises:
        UserError: a candidate that does not fit into the context.
    """

    def __init__(self, bench: Bench, asked: Asked):
        self.bench, self.asked = bench, asked
        eot, length = bench.tokenizer.eot_id, bench.config.model.text.context_length
        ids_CL = bench.tokenizer.encode(asked.candidates, length + 1)
        long = [text for text, last in zip(asked.candidates, ids_CL[:, -1].tolist(), strict=True) if last == eot]
        if long:
            raise UserError(f"--answers: {long[0]!r} has more than {length - 2} tokens, as many as this model reads; take it out")
        self.ids_CL = torch.from_numpy(trim(ids_CL[:, :length]))
        tokens = [tuple(row[1 : row.index(eot) + 1]) for row in self.ids_CL.tolist()]
        self.candidate_of: dict[tuple[int, ...], int] = {}
        for number, own in enumerate(tokens):
            self.candidate_of.setdefault(own, number)
        self.same_tokens = len(tokens) - len(self.candidate_of)
        """Candidates that are the same tokens as an earlier one, and are never chosen."""
        self.choices = Choices.from_ids(tokens, eot)

    def answers(self, picture_Q: np.ndarray | None, what: str) -> list[str]:
        """
        Args:
            picture_Q: int64, the picture that each question is asked on; None: none at all, a picture of the mean colour.
        """
        bench, size = self.bench, self.bench.options.batch_size
        texts, found = self.asked.table["question"].to_pylist(), []
        with Progress(f"answer questions{what}", total=len(texts), unit="questions") as bar:
            for first in range(0, len(texts), size):
                text_QL, numbers = bench.tokens(texts[first : first + size]), None
                if picture_Q is not None:
                    numbers, image_of_Q = np.unique(picture_Q[first : first + size], return_inverse=True)
                    image = bench.pixels(torch.stack([bench.collection.image(number) for number in numbers.tolist()]))
                else:
                    image_of_Q = np.zeros(len(text_QL), dtype=np.int64)
                    side = bench.collection.image_size
                    image = torch.zeros(1, 3, side, side, device=bench.device)  # normalised: 0 is the mean
                asked = {"image_BCHW": image, "text_QL": text_QL, "image_of_Q": torch.from_numpy(image_of_Q).to(bench.device)}
                found += self._chosen(asked)
                bar.advance(len(text_QL))
        return [self.asked.candidates[number] for number in found]

    def _chosen(self, asked: dict[str, torch.Tensor]) -> list[int]:
        """The candidate of each question of a batch. In full precision whatever was asked for: likelihoods are sums."""
        request, bench = self.asked.request, self.bench
        if request.how == "rank":
            keep = min(request.keep, len(self.ids_CL))
            out = bench.call("rank_answers", exact=True, answer_CL=self.ids_CL.to(bench.device), keep=keep, **asked)
            best_Q1 = out["likelihood_QK"].argmax(dim=1, keepdim=True)
            return out["candidate_QK"].gather(1, best_Q1)[:, 0].tolist()
        decoding = Decoding(beams=bench.options.beams)
        ids_QT = bench.call(
            "generate_answers", exact=True, steps=self.choices.longest, decoding=decoding, choices=self.choices, **asked
        )
        eot = bench.tokenizer.eot_id
        return [self.candidate_of[tuple(row[: row.index(eot) + 1])] for row in ids_QT.tolist()]
