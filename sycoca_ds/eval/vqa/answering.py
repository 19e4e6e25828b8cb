"""What the model says to questions, only ever one of the candidates.

Legend: Q questions, C candidates, B a batch of questions, L tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.data.tokenizer import trim
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.cache import Arrays
from sycoca_ds.eval.vqa.items import Asked
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.generation import Decoding


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
        bench, asked = self.bench, self.asked
        work = Answers(picture_Q, self.ids_CL, self.choices, self.candidate_of)
        pictures = None if picture_Q is None else hashlib.sha256(picture_Q.astype("<i8").tobytes()).hexdigest()
        key = {"what": "answers", "questions": asked.digest, "pictures": pictures, "precision": "fp32"}
        key |= {"beams": bench.options.beams} if asked.request.how == "generate" else {}
        found = bench.map_of_images(work, len(asked.table), f"answer questions{what}", "questions", key)["candidate"]
        return [asked.candidates[number] for number in found.tolist()]


@dataclass(frozen=True)
class Answers:
    """The candidate of each question, for `Bench.map`; as of `Answerer`."""

    picture_Q: np.ndarray | None
    ids_CL: torch.Tensor
    choices: Choices
    candidate_of: dict[tuple[int, ...], int]

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        table = bench.inputs.questions.table["question"]
        text_Q = [table[number].as_py() for number in numbers]
        if self.picture_Q is not None:
            pictures, image_of_Q = np.unique(self.picture_Q[numbers], return_inverse=True)
            image = bench.images(pictures.tolist())
        else:
            image_of_Q, side = np.zeros(len(text_Q), dtype=np.int64), bench.collection.image_size
            image = torch.zeros(1, 3, side, side, device=bench.device)  # normalised: 0 is the mean
        asked = {"image_BCHW": image, "text_QL": bench.tokens(text_Q)}
        asked["image_of_Q"] = torch.from_numpy(image_of_Q).to(bench.device)
        return {"candidate": np.array(self._chosen(bench, asked), dtype=np.int64)}

    def _chosen(self, bench: Bench, asked: dict[str, torch.Tensor]) -> list[int]:
        """In full precision whatever was asked for: likelihoods are sums."""
        request = bench.inputs.questions.request
        if request.how == "rank":
            keep = min(request.keep, len(self.ids_CL))
            out = bench.call("rank_answers", exact=True, answer_CL=self.ids_CL.to(bench.device), keep=keep, **asked)
            best_Q1 = out["likelihood_QK"].argmax(dim=1, keepdim=True)
            return out["candidate_QK"].gather(1, best_Q1)[:, 0].tolist()
        decoding = Decoding(beams=bench.options.beams)
        how = {"steps": self.choices.longest, "decoding": decoding, "choices": self.choices}
        ids_QT = bench.call("generate_answers", exact=True, judge=True, **how, **asked)["text_QT"]
        eot = bench.tokenizer.eot_id
        return [self.candidate_of[tuple(row[: row.index(eot) + 1])] for row in ids_QT.tolist()]
