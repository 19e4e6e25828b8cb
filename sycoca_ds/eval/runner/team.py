"""The ranks of an evaluation: rank 0 conducts, writes and reports; all of them ask the model, each of its share of the samples.

Rank 0 runs the tasks. Whenever one asks the model of many samples, the question (a function of this project with what it needs, as
pickle carries it) goes to the other ranks, which hold the same model and data and wait in `serve`. A round is a batch a rank; the
last one is cut into equal shares, filled up with samples that are answered twice and counted once, so every rank makes the same
calls with the same shapes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from data_pipeline.errors import UserError, one_line

PATIENCE = timedelta(days=7)
"""Longest time in which rank 0 alone is busy, as with scoring captions."""
Work = Callable[[Any, list[int]], dict[str, np.ndarray]]
"""(bench, numbers of samples) -> arrays with a row for each."""


@dataclass(frozen=True)
class Failure:
    """What went wrong on a rank."""

    rank: int
    text: str

    @classmethod
    def of(cls, rank: int, error: Exception) -> Failure:
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
        return cls(rank, f"rank {rank} on {socket.gethostname()}: {said}")


def shares(rows_N: np.ndarray, ranks: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Round by round ((R,) samples, (ranks, B) which of them each rank is asked, in order, the last ones again at the end)."""
    for start in range(0, len(rows_N), ranks * batch_size):
        round_R = rows_N[start : start + ranks * batch_size]
        each = -(-len(round_R) // ranks)
        yield round_R, np.resize(np.pad(round_R, (0, each * ranks - len(round_R)), mode="edge"), (ranks, each))


class LeftAlone(Exception):
    """Another rank has failed, and answers no more in this round."""


class Apart(Exception):
    """The work calls the model differently often on different ranks."""


class Team:
    """This process among the ranks. Without arguments it is alone.

    Attributes:
        lockstep: the ranks share the model's weights, so that none can call it without the others: before each call they meet.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        """Where size > 1 torch's process group exists."""
        self.rank, self.size, self._told, self._gone = rank, size, 0, False
        self.lockstep = self._asking = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def rounds(self, bench: Any, work: Work, rows_N: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """On rank 0: (samples, arrays with a row for each), round by round, while the others serve.

        Raises:
            UserError: a rank failed. Alone, whatever the work raises.
        """
        if self.size == 1:
            for round_R, (own_B,) in shares(rows_N, 1, bench.options.batch_size):
                yield round_R, work(bench, own_B.tolist())
            return
        if len(rows_N):
            self._tell((work, rows_N))
            yield from self._rounds(bench, work, rows_N)

    def serve(self, bench: Any) -> None:
        """On the other ranks: answers until rank 0 dismisses them. Raises `UserError` when a rank fails."""
        while (told := self._hear()) is not None:
            for _ in self._rounds(bench, *told):
                pass

    def dismiss(self) -> None:
        """On rank 0: the others leave `serve`, if they have not after an error."""
        if self.size > 1 and not self._gone:
            self._tell(None)
        self._gone = False

    @contextmanager
    def conducting(self) -> Iterator[None]:
        """On rank 0: while the others serve. They are dismissed at the end, and after an error; not after a Ctrl-C, which has
        ended them."""
        try:
            yield
        except Exception:
            self.dismiss()
            raise
        self.dismiss()

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What rank 0 decides, on every rank; it may take its time. An error of it is raised on all."""
        if self.size == 1:
            return decide()
        if self.leads:
            try:
                answer = decide()
            except Exception as error:
                self._tell(Failure.of(0, error))
                raise
            self._tell(answer)
            return answer
        answer = self._hear()
        self._judge([answer])
        return answer

    @contextmanager
    def together(self) -> Iterator[None]:
        """What every rank does for itself, as opening files: where one fails, all do. Each raises its own error, those without one
        the first of the others'."""
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        failures = self._gather(None if own is None else Failure.of(self.rank, own))
        self._gone = False
        if own is not None:
            raise own
        self._judge(failures)

    def all(self, flag: bool) -> bool:
        """On every rank: whether it is so on all of them."""
        return all(self._gather(flag))

    def before_call(self) -> None:
        """On every rank, in lockstep: before the model is called. Raises `LeftAlone`."""
        if self.lockstep:
            if not self._asking:
                raise RuntimeError("a model whose weights the ranks share can be asked only by what all of them do")
            self._meet("call")

    def most(self, count: int) -> int:
        """In lockstep the largest count of any rank, else the own one: so often each has to call. Raises `LeftAlone`."""
        return max(self._meet("count", count)) if self.lockstep else count

    def _meet(self, what: str, value: Any = None) -> list[Any]:
        """Every rank's value where all are at the same place of their work."""
        met = self._gather((what, value))
        if any(other == "failed" for other, _ in met):
            raise LeftAlone
        if len({other for other, _ in met}) > 1:
            raise Apart(f"the ranks are at different places of their work: {', '.join(other for other, _ in met)}")
        return [value for _, value in met]

    def _answer(self, bench: Any, work: Work, numbers: list[int]) -> Any:
        """What the work gives, or a `Failure`."""
        self._asking = True
        try:
            answer = work(bench, numbers)
            if self.lockstep:
                self._meet("done")
            return answer
        except LeftAlone:
            return {}
        except Apart as error:  # every rank's
            return Failure.of(self.rank, error)
        except Exception as error:
            if self.lockstep:
                self._gather(("failed", None))
            return Failure.of(self.rank, error)
        finally:
            self._asking = False

    def _rounds(self, bench: Any, work: Work, rows_N: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for round_R, asked_RB in shares(rows_N, self.size, bench.options.batch_size):
            answers = self._gather(self._answer(bench, work, asked_RB[self.rank].tolist()))
            self._gone = any(isinstance(answer, Failure) for answer in answers)
            self._judge(answers)
            yield round_R, {name: np.concatenate([each[name] for each in answers])[: len(round_R)] for name in answers[0]}

    @staticmethod
    def _judge(answers: list[Any]) -> None:
        failed = next((answer for answer in answers if isinstance(answer, Failure)), None)
        if failed is not None:
            raise UserError(failed.text)

    # ---- torch ------------------------------------------------------------------------------------------------------------------

    def _tell(self, value: Any) -> None:
        """The store first: waiting at it costs nothing and has no end after half an hour, as collectives have."""
        import torch.distributed as dist

        self._told += 1
        dist.distributed_c10d._get_default_store().set(f"evaluation {self._told}", b"1")
        dist.broadcast_object_list([value], src=0)

    def _hear(self) -> Any:
        import torch.distributed as dist

        self._told += 1
        dist.distributed_c10d._get_default_store().wait([f"evaluation {self._told}"], PATIENCE)
        box = [None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values
