"""Texts that alone may be generated, as a prefix tree.

Legend: N nodes, E edges, D the most edges of one node, R rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.errors import UserError


@dataclass(frozen=True, eq=False)
class Choices:
    """The only texts that may come out, as a prefix tree. Made by `from_ids`.

    Node 0 is the root; the edges of node n stand at places start_N1[n] .. start_N1[n + 1] - 1.
    """

    start_N1: Tensor
    """int64 (N + 1,)."""
    token_E: Tensor
    """int64 (E,), the token of each edge."""
    child_E: Tensor
    """int64 (E,), the node it leads to."""
    longest: int
    """Tokens of the longest choice, [EOT] counted."""
    widest: int
    """D."""
    largest_id: int
    """The largest token."""

    @classmethod
    def from_ids(cls, ids: Iterable[Sequence[int]], eot_id: int) -> Choices:
        """A tree of token sequences, each without [SOT] and with [EOT] as its end. Duplicates count once.

        Raises:
            UserError: no choice, or a sequence that does not end with its only [EOT], or holds a negative id.
        """
        children: list[dict[int, int]] = [{}]
        longest = 0
        for number, sequence in enumerate(ids):
            tokens = [int(token) for token in sequence]
            if eot_id not in tokens or tokens.index(eot_id) != len(tokens) - 1:
                raise UserError(
                    f"choice {number} (tokens {tokens[:8]}..): expected one <end_of_text> ({eot_id}) as its last token; "
                    "add it, or cut off what comes after it"
                )
            if min(tokens) < 0:
                raise UserError(f"choice {number} holds the token {min(tokens)}: expected ids of the vocabulary, from 0 on")
            longest, node = max(longest, len(tokens)), 0
            for token in tokens:
                child = children[node].setdefault(token, len(children))
                if child == len(children):
                    children.append({})
                node = child
        edges = [sorted(after.items()) for after in children]
        if not edges[0]:
            raise UserError("no choices: expected at least one text to choose")
        start_N1 = torch.tensor([0, *(len(after) for after in edges)]).cumsum(0)
        token_E, child_E = torch.tensor([edge for after in edges for edge in after]).unbind(1)
        return cls(start_N1, token_E.contiguous(), child_E.contiguous(), longest, max(map(len, edges)), int(token_E.max()))

    def to(self, device: torch.device | str) -> Choices:
        tensors = {name: getattr(self, name).to(device) for name in ("start_N1", "token_E", "child_E")}
        return dataclasses.replace(self, **tensors)

    def _edges(self, node_R: Tensor) -> tuple[Tensor, Tensor]:
        """(places in token_E (R, D), bool (R, D) True where there is such an edge)."""
        place_RD = self.start_N1[node_R][:, None] + torch.arange(self.widest, device=node_R.device)
        return place_RD.clamp(max=len(self.token_E) - 1), place_RD < self.start_N1[node_R + 1][:, None]

    def allowed(self, node_R: Tensor, vocab_size: int) -> Tensor:
        """Bool (R, V), True at the tokens that go on from each row's node; none at a choice's end."""
        place_RD, real_RD = self._edges(node_R)
        allowed = torch.zeros(len(node_R), vocab_size + 1, dtype=torch.bool, device=node_R.device)
        # missing edges point to one column too many, which is cut off
        return allowed.scatter_(1, self.token_E[place_RD].masked_fill(~real_RD, vocab_size), True)[:, :vocab_size]

    def follow(self, node_R: Tensor, token_R: Tensor) -> Tensor:
        """The nodes (R,) that tokens lead to; a row whose token is no edge stays where it is."""
        place_RD, real_RD = self._edges(node_R)
        match_RD = real_RD & (self.token_E[place_RD] == token_R[:, None])
        child_R = (self.child_E[place_RD] * match_RD).sum(dim=1)
        return torch.where(match_RD.any(dim=1), child_R, node_R)
