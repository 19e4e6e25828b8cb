"""Pictures that are told apart by one colour."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SIDE = 12


def colour(number: int) -> tuple[int, int, int]:
    """RGB, another for each of 0 to 250."""
    return (number * 37) % 251, (number * 91 + 40) % 251, 250 - number


def write_picture(path: Path, number: int, mode: str = "RGB") -> Path:
    """A file of one colour: PNG, whatever its name says, as one of ImageNet's pictures is; grey and CMYK as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (SIDE, SIDE + 4), colour(number))
    with open(path, "wb") as file:
        if mode == "RGB":
            picture.save(file, "PNG")
        else:
            picture.convert(mode).save(file, "JPEG", quality=95)
    return path
