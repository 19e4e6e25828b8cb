"""Ranks of both directions beside a plain chunked float32 product with the ten best of both directions, which need no exactness."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.frame import Row, in_turns, timed
from benchmarks.limits import products
from benchmarks.peers import PeerProcess
from sycoca_ds.eval.stats.recalls import retrieve

IMAGES, TEXTS, WIDTH, CHUNK, BEST = 5_000, 25_010, 512, 512, 10


def plain(image_IE: torch.Tensor, text_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(I, 10) captions, (T, 10) images; one product, the best of captions kept from chunk to chunk."""
    best_I, score_T, best_T = [], None, None
    for first in range(0, len(image_IE), CHUNK):
        score = image_IE[first : first + CHUNK] @ text_TE.T
        best_I.append(score.topk(BEST, dim=1).indices)
        top = score.topk(min(BEST, len(score)), dim=0)
        values, places = top.values, top.indices + first
        if best_T is not None:
            values, places = torch.cat([score_T, values]), torch.cat([best_T, places])
        top = values.topk(BEST, dim=0)
        score_T, best_T = top.values, places.gather(0, top.indices)
    return torch.cat(best_I), best_T.T


def measure(options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    image_IE = F.normalize(torch.randn(IMAGES, WIDTH, generator=generator), dim=1)
    owner_T = torch.cat([torch.arange(TEXTS) % IMAGES])
    text_TE = F.normalize(0.1 * image_IE[owner_T] + 0.02 * torch.randn(TEXTS, WIDTH, generator=generator), dim=1)
    image_IE, text_TE, owner_T = (x.to(options.device) for x in (image_IE, text_TE, owner_T))
    ways = {
        "ours": timed(lambda: retrieve(image_IE, text_TE, owner_T), options.device),
        "plain product and top-k": timed(lambda: plain(image_IE, text_TE), options.device),
    }
    for way in ways.values():
        way()
    turns = in_turns(ways, options.turns)
    alone, operations = products([(CHUNK, WIDTH, TEXTS)], torch.float32, options.device)
    what = f"{IMAGES:,} pictures x {TEXTS:,} captions, {WIDTH} wide"
    limit = {"limit_turns": alone, "limit_work": operations / (2 * WIDTH), "limited_by": "the product alone"}
    yield Row("retrieval", what, "scores/s", IMAGES * TEXTS, turns.pop("ours"), turns, **limit)
