"""Which blocks are computed again in the backward pass, as users write it."""

from __future__ import annotations

import re

from data_pipeline.errors import UserError

PARTS = ("image_encoder", "text_encoder", "text_decoder", "image_decoder")


def read_recompute(text: str) -> dict[str, int]:
    """`run.activation_checkpointing` by part: every how many-th block is recomputed, 1 all, 0 none.

    Raises:
        UserError: a word that is none of `full`, `none`, `every_K`, `PART=...`.
    """
    if "=" not in text:
        return dict.fromkeys(PARTS, _every(text, text))
    found = dict.fromkeys(PARTS, 0)
    for item in text.split(","):
        part, _, word = item.strip().partition("=")
        if part not in PARTS:
            raise UserError(f"run.activation-checkpointing = {text}: no part {part!r} (expected {', '.join(PARTS)})")
        found[part] = _every(word, text)
    return found


def _every(word: str, text: str) -> int:
    found = re.fullmatch(r"every_([1-9]\d*)", word)
    if word not in ("full", "none") and found is None:
        raise UserError(
            f"run.activation-checkpointing = {text}: expected full, none, every_2 (or another number), or these by part, as in "
            "image_encoder=full,text_decoder=every_2"
        )
    return int(found[1]) if found else int(word == "full")
