"""A validation of a run that learns to answer: held-out losses, and answers beside those that know too little."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import TrainConfig
from sycoca_ds.data.questions import read_questions, weighted_answers
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.monitoring.pictures import card, in_a_cell
from sycoca_ds.engine.monitoring.validation import Validation
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.vqa.accuracy import accuracies

ANSWER_STEPS = 12
"""Longest generated answer, tokens (less where the context is shorter)."""


class QuestionValidation(Validation):
    """The questions on the first `run.validation_samples` pictures of the validation folder. Answers are generated greedily and
    freely; evaluate.py chooses among candidates.

    Raises:
        UserError: no questions are given, or none is on these pictures.
    """

    ASKS_MASKS = False

    def __init__(self, config: TrainConfig, collection: Collection, tokenizer: Tokenizer, runtime: Runtime, batch_size: int):
        super().__init__(config, collection, tokenizer, runtime, batch_size)
        if config.data.validation_questions is None:
            raise UserError("data.validation with --task vqa: give data.validation-questions, the questions on its pictures, too")
        found = read_questions(config.data.validation_questions, "data.validation-questions")
        number_of = {name: number for number, name in enumerate(found.names_of(p.url for p in collection.pictures[: self.count]))}
        asked = [row for row in found.table.to_pylist() if row["picture"] in number_of and row["answers"]]
        if len(asked) < runtime.world_size:
            raise UserError(
                f"data.validation-questions = {config.data.validation_questions}: {len(asked)} questions with answers are on the "
                f"first {self.count} pictures of data.validation; expected the questions of these pictures"
            )
        self.asked = asked
        self.picture_of = [number_of[row["picture"]] for row in asked]
        others = sorted(set(self.picture_of))
        after = dict(zip(others, others[1:] + others[:1], strict=True))
        self.other_of = [after[number] for number in self.picture_of]
        self.answers = [row["answers"] for row in asked]

    def numbers(self, engine) -> dict[str, float]:
        """Keys of `curves.TAGS`; complete on rank 0 only."""
        said = self.say(engine, self.picture_of)
        other = self.say(engine, self.other_of)
        frequent = Counter(answer for given in self.answers for answer in given).most_common(1)[0][0]
        found = {"vqa_accuracy": said, "vqa_other_picture": other, "vqa_majority": [frequent] * len(self.asked)}
        right = {name: 100.0 * float(accuracies(words, self.answers).mean()) for name, words in found.items()}
        return self.losses(engine) | {f"validation/{name}": value for name, value in right.items()}

    @torch.no_grad()
    def losses(self, engine) -> dict[str, float]:
        """The loss, a mean over the questions that fill batches of equal size on all ranks."""
        world, rank = self.runtime.world_size, self.runtime.rank
        size = min(self.batch_size, len(self.asked) // world)
        batches, total = len(self.asked) // (size * world), torch.zeros((), device=self.runtime.device)
        for number in range(batches):
            first = (number * world + rank) * size
            total += engine("train_answers", **self._asked(list(range(first, first + size))))["vqa"] / batches
        mean = self.runtime.mean(total).item()
        return {"validation/loss": mean, "validation/vqa": mean}

    def _asked(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """What `train_answers` takes of some questions."""
        answers = [(at, *answer) for at, row in enumerate(rows) for answer in weighted_answers(self.answers[row])]
        number_A, text_A, weight_A = zip(*answers, strict=True)
        device = self.runtime.device
        return {
            "image_BCHW": self._images([self.picture_of[row] for row in rows]),
            "text_BL": self._texts([self.asked[row]["question"] for row in rows]),
            "answer_AL": self._texts(list(text_A)),
            "question_of_A": torch.tensor(number_A, device=device),
            "weight_A": torch.tensor(weight_A, device=device),
        }

    @torch.no_grad()
    def say(self, engine, picture_of: list[int]) -> list[str]:
        """Each question's answer to the picture of this number, on every rank."""
        steps = min(ANSWER_STEPS, self.config.model.text.context_length - 1)

        def ids(rows: list[int]) -> torch.Tensor:
            images = self._images([picture_of[row] for row in rows])
            questions = self._texts([self.asked[row]["question"] for row in rows])
            return engine("generate_answers", image_BCHW=images, text_QL=questions, steps=steps)

        return [self.tokenizer.decode(row) for row in self._everywhere(len(self.asked), ids).tolist()]

    @torch.no_grad()
    def pictures(self, engine) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """(pictures by TensorBoard tag, texts by tag), of the first question on each shown picture."""
        rows = [self.picture_of.index(number) for number in self.shown if number in self.picture_of]
        if not rows:
            return {}, {}
        steps = min(ANSWER_STEPS, self.config.model.text.context_length - 1)
        questions = self._texts([self.asked[row]["question"] for row in rows])
        images = self._images([self.picture_of[row] for row in rows])
        said = [
            self.tokenizer.decode(ids)
            for ids in engine("generate_answers", image_BCHW=images, text_QL=questions, steps=steps).tolist()
        ]
        if not self.runtime.leads:
            return {}, {}
        cards, lines = {}, ["| picture | question | answers | model |", "|---|---|---|---|"]
        for row, words in zip(rows, said, strict=True):
            number, asked = self.picture_of[row], self.asked[row]
            given = ", ".join(dict.fromkeys(self.answers[row]))
            panel = [("picture", self.collection.picture(number))]
            cards[f"pictures/{number:02d}"] = card(panel, [asked["question"], f"answers: {given}", f"model: {words}"])
            lines.append(" | ".join([f"| {number}", *map(in_a_cell, (asked["question"], given, words))]) + " |")
        return cards, {"answers": "\n".join(lines)}
