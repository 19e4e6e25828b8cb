"""Cards for TensorBoard: one picture a fixed sample, with what the model hides, rebuilds and says. Drawn so that the words can be
read at the size that TensorBoard shows pictures at, about 330 pixels wide, and again twice as large."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw

from sycoca_ds.eval.pictures import INK, PAPER, enlarge, font_of, grid

PANEL = 300
"""Least side of one of a card's pictures, pixels."""
TEXT = 26
"""Height of letters, pixels: 13 where TensorBoard halves the card."""
LINES = 3
"""Most lines of one caption."""


def in_a_cell(text: str) -> str:
    """A text for a table in Markdown: on one line, whatever a model has made up that ends one, and without bars."""
    return " ".join(text.replace("|", " ").split())


def card(panels: list[tuple[str, np.ndarray]], words: list[str]) -> np.ndarray:
    """uint8 (H, W, 3): pictures two a row, each with its label, and lines of text below.

    Args:
        panels: label and uint8 (S, S, 3) picture of one size.
        words: paragraphs, each cut to `LINES` lines.
    """
    labels, shown = [label for label, _ in panels], [enlarge(picture, PANEL) for _, picture in panels]
    sheet = grid(shown, columns=min(2, len(shown)), labels=labels, text_size=TEXT)
    font, width = font_of(TEXT), sheet.shape[1]
    letters = int((width - 20) / (font.getlength("abcdefghijklmnopqrstuvwxyz ") / 27))
    lines = [line for text in words for line in textwrap.wrap(text, letters, max_lines=LINES, placeholder=" ...")]
    height = round(1.3 * TEXT)
    page = Image.new("RGB", (width, sheet.shape[0] + height * len(lines) + 10), PAPER)
    page.paste(Image.fromarray(sheet), (0, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        text = line.encode("latin-1", "replace").decode("latin-1")
        draw.text((10, sheet.shape[0] + number * height), text, fill=INK, font=font)
    return np.asarray(page)
