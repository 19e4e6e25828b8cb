"""A world of which everything is known: squares of eight colours on white, some of which the caption names, with regions, and
models whose scores are known to find what is named, to find objects, or nothing.

Pictures have 48 x 48 pixels, a square fills a cell of 16; with patches of 8 it is four patches.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_pipeline.shards.verify import verify
from tests.worlds.data.data_sets import parts, write_tar

COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 160, 20),
    "blue": (20, 20, 230),
    "black": (10, 10, 10),
    "yellow": (240, 220, 20),
    "purple": (140, 20, 160),
    "brown": (140, 80, 30),
    "gray": (128, 128, 128),
}
SIDE, CELL, PATCH = 48, 16, 8
ENTRIES = 340
"""Of the tokenizer: letters, and every word of this world whole."""


@dataclass(frozen=True)
class Squares:
    """One picture: colours by cell, of which the first `named` are in the caption."""

    cells: tuple[int, ...]
    colours: tuple[str, ...]
    named: int
    number: int

    @property
    def url(self) -> str:
        return f"http://squares.example/{self.number:04d}.jpg"

    @property
    def caption(self) -> str:
        return " and ".join(f"a {colour} square" for colour in self.colours[: self.named])

    @property
    def labels(self) -> np.ndarray:
        """uint8 (48, 48): 0 background, k the k-th square."""
        label_HW = np.zeros((SIDE, SIDE), np.uint8)
        for number, cell in enumerate(self.cells, 1):
            top, left = cell // 3 * CELL, cell % 3 * CELL
            label_HW[top : top + CELL, left : left + CELL] = number
        return label_HW

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (48, 48, 3)."""
        return np.array([(255, 255, 255), *(COLOURS[colour] for colour in self.colours)], np.uint8)[self.labels]

    @property
    def record(self) -> dict:
        """As in a regions file."""
        objects = []
        for number, colour in enumerate(self.colours):
            name, named = f"{colour} square", number < self.named
            start = self.caption.index(name) if named else None
            span = [start, start + len(name)] if named else None
            objects.append({"label": number + 1, "name": name, "named": named, "span": span})
        background = {"name": "white", "named": False, "span": None}
        return {"mask": f"regions/{self.number:05d}.png", "caption": self.caption, "objects": objects, "background": background}


def draw_squares(count: int, seed: int = 0, named: int = 2, objects: int = 4) -> list[Squares]:
    random = np.random.default_rng(seed)
    return [
        Squares(
            tuple(random.permutation(9)[:objects].tolist()),
            tuple(random.permutation(list(COLOURS))[:objects].tolist()),
            named,
            number,
        )
        for number in range(count)
    ]


def squares_tokenizer(path: Path) -> Path:
    """A BPE in which every word of the captions is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<start_of_text>", "<end_of_text>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ENTRIES, special_tokens=special, show_progress=False, initial_alphabet=alphabet)
    bpe.train_from_iterator([square.caption for square in draw_squares(200, seed=9)], trainer)
    bpe.save(str(path))
    return path


def write_squares(folder: Path, squares: list[Squares]) -> Path:
    """folder/data, a verified data set folder, and folder/test_regions.json with regions/."""
    members = []
    for square in squares:
        stream = io.BytesIO()
        Image.fromarray(square.pixels).save(stream, format="PNG")
        uid = hashlib.sha256(square.url.encode()).hexdigest()[:16]
        facts = {"uid": uid, "url": square.url, "caption": square.caption, "width": SIDE, "height": SIDE}
        members += parts(
            f"{square.number:09d}", png=stream.getvalue(), txt=square.caption.encode(), json=json.dumps(facts).encode()
        )
    write_tar(folder / "data/shards/00000.tar", members)
    verify(folder / "data", 1)
    write_regions(folder / "test_regions.json", squares)
    return folder


def write_regions(path: Path, squares: list[Squares]) -> Path:
    (path.parent / "regions").mkdir(parents=True, exist_ok=True)
    for square in squares:
        Image.fromarray(square.labels).save(path.parent / square.record["mask"])
    path.write_text(json.dumps({"format": 1, "pictures": {square.url: square.record for square in squares}}))
    return path


class Knowing(torch.nn.Module):
    """A model whose scores are known: a token scores a patch by whether it names the patch's colour (`kind` "named"), by whether
    the patch shows any object, whatever the token ("objects"), not at all ("nothing"), or at random ("noise").

    Args:
        words: {id of a token: the colours it may be of}.
    """

    def __init__(self, words: dict[int, set[str]], kind: str):
        super().__init__()
        self.words, self.kind = words, kind
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, task: str, image_BCHW: torch.Tensor, text_CBL: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        assert task == "token_scores", task
        token_BCLN = torch.stack([self.tokens(image_BCHW, text_BL) for text_BL in text_CBL], dim=1)
        return {"score_BCN": token_BCLN.amax(2), "token_BCLN": token_BCLN}

    def tokens(self, image_BCHW: torch.Tensor, text_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, N)."""
        from sycoca_ds.model.pixels import denormalise

        pixels = denormalise(image_BCHW).float()
        patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).mean(dim=(4, 5)).flatten(2).transpose(1, 2)  # (B, N, 3)
        palette = torch.tensor([*COLOURS.values(), (255, 255, 255)]).float()
        nearest_BN = (patches[:, :, None] - palette).square().sum(3).argmin(2)
        score_BLN = torch.zeros(*text_BL.shape, patches.shape[1])
        if self.kind == "noise":
            return torch.rand(
                score_BLN.shape,
                generator=torch.Generator().manual_seed(
                    int((text_BL * torch.arange(1, text_BL.numel() + 1).view_as(text_BL)).sum())
                ),
            )
        if self.kind == "objects":
            return score_BLN + (nearest_BN < len(COLOURS))[:, None]
        if self.kind == "named":
            for row, text_L in enumerate(text_BL.tolist()):
                for place, token in enumerate(text_L):
                    for colour in self.words.get(token, ()):
                        score_BLN[row, place] = torch.maximum(
                            score_BLN[row, place], (nearest_BN[row] == list(COLOURS).index(colour)).float()
                        )
        return score_BLN
