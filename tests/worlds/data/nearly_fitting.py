"""SugarCrepe, Winoground and ARO in miniature: their files and folders, with pictures of one colour each; and models that answer by
a rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from sycoca_ds.config import ModelConfig
from tests.worlds.trainings.eval_world import SMALL

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 220), "yellow": (235, 215, 40), "black": (10, 10, 10)}
SUBSETS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def caption(colour: str) -> str:
    return f"a {colour} square"


def paint(path: Path, colour: str, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)
    return path


def two_colours(number: int) -> tuple[str, str]:
    """Another pair for each of 20 numbers."""
    names, (first, step) = list(COLOURS), divmod(number % 20, 4)
    return names[first], names[(first + 1 + step) % 5]


def write_sugarcrepe(folder: Path, items: int = 6, subsets: Sequence[str] = SUBSETS, pictures: str = "val2017") -> Path:
    """`items` a subset on as many pictures, which the subsets share."""
    for number in range(items):
        paint(folder / pictures / f"{number:012d}.png", two_colours(number)[0])
    for subset in subsets:
        content = {
            str(number): {
                "filename": f"{number:012d}.png",
                "caption": caption(two_colours(number)[0]),
                "negative_caption": caption(two_colours(number)[1]),
            }
            for number in range(items)
        }
        (folder / f"{subset}.json").write_text(json.dumps(content))
    return folder


def change(path: Path, number: int | str, **fields: object) -> None:
    """Puts other fields into an item of a json file."""
    content = json.loads(path.read_text())
    content[number] |= fields
    path.write_text(json.dumps(content))


def write_winoground(folder: Path, items: int = 6) -> Path:
    lines = []
    for number in range(items):
        pair = two_colours(number)
        for place, colour in enumerate(pair):
            paint(folder / "images" / f"ex_{number}_img_{place}.png", colour)
        lines.append(
            {
                "id": number,
                "image_0": f"ex_{number}_img_0",
                "image_1": f"ex_{number}_img_1",
                "caption_0": caption(pair[0]),
                "caption_1": caption(pair[1]),
                "tag": "Object",
                "num_main_preds": 1,
            }
        )
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_aro(folder: Path, relations: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Path:
    """An item a relation and one a pair of attributes. The left half of each picture, which the box cuts out, has the true colour,
    the right half the false one."""
    for kind, groups in (("relation", relations), ("attribution", pairs)):
        content = []
        for number, group in enumerate(groups):
            true, false = two_colours(number)
            picture = Image.new("RGB", (40, 20), COLOURS[false])
            picture.paste(COLOURS[true], (0, 0, 20, 20))
            (folder / "images").mkdir(parents=True, exist_ok=True)
            picture.save(folder / "images" / f"{kind}{number}.png")
            entry = {"image_id": number, "image_path": f"{kind}{number}.png"}
            entry |= {"bbox_x": 0, "bbox_y": 0, "bbox_w": 20, "bbox_h": 20}
            entry |= {"true_caption": caption(true), "false_caption": caption(false)}
            content.append(entry | ({"relation_name": group} if kind == "relation" else {"attributes": list(group)}))
        if groups:
            (folder / f"visual_genome_{kind}.json").write_text(json.dumps(content))
    return folder


class Answering(torch.nn.Module):
    """A model that knows the colour of every picture ("knows"), or never looks: "blind" finds some captions more likely than
    others, the same ones before every picture, and its vectors of pictures are all alike.

    Args:
        decode: the tokenizer's.
    """

    def __init__(self, kind: str, decode: Callable[[Sequence[int]], str], model: ModelConfig = SMALL):
        super().__init__()
        self.kind, self.decode, self.config = kind, decode, model

    def forward(self, task: str, **inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self, task)(**inputs)

    def image_features(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        if self.kind == "blind":
            return torch.randn(16, generator=torch.Generator().manual_seed(5)).expand(len(image_BCHW), 16)
        return torch.eye(6)[self._colours(image_BCHW)][:, :5]

    def text_features(self, text_BL: torch.Tensor) -> torch.Tensor:
        if self.kind == "blind":
            return torch.stack([torch.randn(16, generator=_by(row)) for row in text_BL])
        return torch.stack([torch.eye(5)[self._named(row)].sum(0) + 0.1 for row in text_BL])

    def caption_likelihoods(self, image_BCHW: torch.Tensor, text_TL: torch.Tensor, image_of_T: torch.Tensor) -> torch.Tensor:
        if self.kind == "blind":
            return torch.stack([-10 - 5 * torch.rand((), generator=_by(row)) for row in text_TL])
        colour_T = self._colours(image_BCHW)[image_of_T]
        return torch.tensor(
            [-10.0 - 4 * sum(colour != named for named in self._named(row)) for colour, row in zip(colour_T, text_TL, strict=True)]
        )

    def _named(self, row: torch.Tensor) -> list[int]:
        words = self.decode(row[1:].tolist()).split()
        return [number for number, colour in enumerate(COLOURS) if colour in words]

    @staticmethod
    def _colours(image_BCHW: torch.Tensor) -> torch.Tensor:
        """(B,) number of the colour in the middle; 5 of noise."""
        from sycoca_ds.model.pixels import denormalise

        side = image_BCHW.shape[-1]
        pixels = denormalise(image_BCHW).float()[:, :, side // 4 : -side // 4, side // 4 : -side // 4].flatten(2)
        palette = torch.tensor(list(COLOURS.values())).float()
        nearest_B = (pixels.mean(2)[:, None] - palette).square().sum(2).argmin(1)
        return torch.where(pixels.std(2).amax(1) > 40, 5, nearest_B)


def _by(row: torch.Tensor) -> torch.Generator:
    return torch.Generator().manual_seed(hash(tuple(row.tolist())) % 2**31)
