"""Questions on the pictures of data set folders, as what a run is fed. To the plan a picture is what a shard is elsewhere and its
questions are that shard's samples: so order, epochs, resuming and other numbers of ranks are those of any run."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import DataConfig
from sycoca_ds.data.batch import Batch
from sycoca_ds.data.loader import TrainSet
from sycoca_ds.data.questions import SCHEMA, read_questions, weighted_answers
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import trim
from sycoca_ds.data.transforms import load_image
from sycoca_ds.model.text_encoder import label_places

Asked = tuple[str, list[tuple[str, float]]]
"""A question, and its distinct answers with their weights."""


@dataclass(frozen=True)
class QuestionSources(Sources):
    """The folders' pictures and the questions on them."""

    table: pa.Table = field(default_factory=SCHEMA.empty_table, compare=False)
    """`questions.SCHEMA`, the questions of each picture together, pictures in the order of the shards."""
    place_P2: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64), compare=False)
    """int64, (shard, position among its kept samples) of each picture that is asked about."""
    asked_P: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False)
    """int64, how many questions each picture has."""
    left_out: int = 0
    """Questions on pictures that are not in the folders."""
    questions_digest: str = ""

    @classmethod
    def of(cls, data: DataConfig, *, check_tars: bool = True) -> QuestionSources:
        """Raises `UserError`: as `Sources.of`, for folders behind URLs, and for questions that are not there, without answers, or
        on none of these pictures."""
        sources = Sources.of(data, check_tars=check_tars)
        if any(sources.urls):
            raise UserError("--task vqa: data.train is behind a URL; questions are read on folders of this machine, copy it there")
        files = [read_questions(text) for text in data.questions]
        for text, questions in zip(data.questions, files, strict=True):
            if not questions.answered:
                raise UserError(
                    f"data.questions = {text}: no answers; expected QUESTIONS.json,ANNOTATIONS.json of a training split"
                )
        place: dict[tuple[bool, str], tuple[int, int]] = {}
        for shard in range(sum(len(manifest.shards) for manifest in sources.manifests)):
            urls = sources.index(shard, ["url"])["url"].to_pylist()
            for questions in {questions.by_url: questions for questions in files}.values():
                for position, name in enumerate(questions.names_of(urls)):
                    place.setdefault((questions.by_url, name), (shard, position))
        found: list[tuple[int, int]] = []
        rows, total = [], 0
        for questions in files:
            for row, name in enumerate(questions.table["picture"].to_pylist()):
                if (questions.by_url, name) in place:
                    found.append(place[questions.by_url, name])
                    rows.append(total + row)
            total += len(questions)
        if not rows:
            one = f"{files[0].table['picture'][0]}" if files else "none"
            raise UserError(
                f"data.questions: none of the {total:,} questions is on a picture of {' '.join(data.train)} (the first one's is "
                f"{one}); pictures are found by their urls, COCO's by the number at the end of their file names"
            )
        places = np.array(found, dtype=np.int64)
        order = np.lexsort((np.arange(len(rows)), places[:, 1], places[:, 0]))
        place_P2, asked_P = np.unique(places[order], axis=0, return_counts=True)
        table = pa.concat_tables([questions.table for questions in files]).take(np.array(rows)[order]).combine_chunks()
        digest = hashlib.sha256("\n".join(questions.digest for questions in files).encode()).hexdigest()
        parts = (sources.manifests, sources.urls, sources.cache, table, place_P2, asked_P, total - len(rows), digest)
        return cls(*parts)

    @property
    def kept(self) -> list[np.ndarray]:
        return [self.asked_P]

    @property
    def samples(self) -> int:
        return int(self.asked_P.sum())

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{Sources.digest.func(self)}\n{self.questions_digest}".encode()).hexdigest()

    def told(self) -> str:
        """One line for people."""
        left = f"; {self.left_out:,} more are on pictures that are not in data.train" if self.left_out else ""
        return f"questions: {self.samples:,} on {len(self.asked_P):,} pictures{left}"


@dataclass(kw_only=True)
class QuestionBatch(Batch):
    """One micro-batch of questions. text_BL: the questions; answer_AL: int64, all their distinct answers, trimmed; label_at_M:
    `label_places` of these; question_of_A: int64, the question of each; weight_A: float32, the share of annotators who gave it."""

    answer_AL: Tensor
    question_of_A: Tensor
    weight_A: Tensor

    SENT = (*Batch.SENT, "answer_AL", "question_of_A", "weight_A")


class QuestionSet(TrainSet):
    """(epoch, question) -> picture, question and answers. Of `TrainSet` everything but what is read."""

    NOTHING: Asked = ("", [("", 1.0)])

    def _tar(self, shard: int) -> int:
        return int(self.reader.sources.place_P2[shard, 0])

    def _read(self, epoch: int, shard: int, position: int) -> tuple[np.ndarray, Asked]:
        sources = self.reader.sources
        tar, place = sources.place_P2[shard].tolist()
        data, _ = self.reader.read(tar, place)
        row = int(self.plan.first_id[shard]) + position
        asked = sources.table["question"][row].as_py(), weighted_answers(sources.table["answers"][row].as_py())
        return load_image(data, at_least=self.augmentation.size), asked

    def _batch(self, pixels: Tensor, size_B2: Tensor, said: Sequence[Asked], **more) -> QuestionBatch:
        answers = [(number, *answer) for number, (_, given) in enumerate(said) for answer in given]
        answer_AL = torch.from_numpy(trim(self._tokenizer.encode([text for _, text, _ in answers], self.context_length)))
        return QuestionBatch(
            pixels,
            size_B2,
            torch.from_numpy(trim(self._tokenizer.encode([question for question, _ in said], self.context_length))),
            label_places(answer_AL, self._tokenizer.eot_id),
            **more,
            answer_AL=answer_AL,
            question_of_A=torch.tensor([number for number, _, _ in answers]),
            weight_A=torch.tensor([weight for _, _, weight in answers]),
        )
