"""README.md of an exported folder: what the model is, how it is loaded, what it learned from and reached, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sycoca_ds.config import ModelConfig
    from sycoca_ds.exporting.source import Source

CARD = "README.md"
FAMILIES = {
    "sycoca": "SyCoCa (arXiv 2401.02137)",
    "coca": "CoCa (arXiv 2205.01917)",
    "clip": "CLIP (arXiv 2103.00020), its text vector from a learned [CLS]",
}


def parts_of(config: ModelConfig, form: str) -> str:
    """The towers in words, those that a form of export has."""
    towers = {"image encoder": config.image, "text encoder": config.text}
    towers |= {"text decoder": config.text_decoder} if config.captions else {}
    towers |= {"image decoder": config.image_decoder} if config.reconstructs and form != "open_clip" else {}
    return ", ".join(f"{name} {tower.layers} x {tower.width}" for name, tower in towers.items())


def write_card(
    folder: Path,
    form: str,
    source: Source,
    facts: dict[str, Any],
    said: Sequence[str],
    licence: str | None,
    data_licence: str | None,
) -> None:
    """Writes README.md.

    Args:
        facts: of the weights' file. said: what a user must know. licence, data_licence: as they were given.
    """
    from jinja2 import Environment, PackageLoader

    from sycoca_ds.model.open_clip.config import CLIP_EOT_ID, CLIP_SOT_ID, uses_clips_ids

    environment = Environment(loader=PackageLoader("sycoca_ds.exporting", "."), trim_blocks=True, lstrip_blocks=True)
    config, about = source.config, source.facts.get("about") or {}
    text, special = config.text, not uses_clips_ids(config)
    values = {
        "form": form,
        "config": config,
        "name": folder_name(source),
        "family": FAMILIES[config.family],
        "parts": parts_of(config, form),
        "facts": facts,
        "said": said,
        "special": special,
        "clip_ids": (CLIP_SOT_ID, CLIP_EOT_ID),
        "generate": f", sot_token_id={text.sot_id}, eos_token_id={text.eot_id}" if special else "",
        "decode": "tokenizer.tokenizer.decode(ids[0], skip_special_tokens=True)"
        if special
        else 'open_clip.decode(ids[0]).split("<end_of_text>")[0].replace("<start_of_text>", "")',
        "source": source.facts,
        "training": about.get("training"),
        "data": about.get("data"),
        "manifest_digest": about.get("manifest_digest") or "",
        "results": about.get("results"),
        "license": licence,
        "data_license": data_licence,
    }
    (folder / CARD).write_text(environment.get_template("card.md.j2").render(**values), encoding="utf-8")


def folder_name(source: Source) -> str:
    """The model's name: that of the run or folder it came from, and its step."""
    name, step = source.facts["path"], source.facts["step"]
    return name if step is None else f"{name}, step {step}"
