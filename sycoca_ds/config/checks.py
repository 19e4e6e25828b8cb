"""What of a configuration is refused, whatever is done with it."""

from __future__ import annotations

import math
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.config.model import ModelConfig, hidden_count


def check_model(model: ModelConfig) -> None:
    """Raises `UserError` for shapes that cannot be built, naming the field."""
    image, text = model.image, model.text

    def divides(small: int, big: int, small_name: str, big_name: str) -> None:
        if small < 1 or big < 1 or big % small:
            raise UserError(f"{small_name} = {small} does not divide {big_name} = {big}: choose values that divide")

    divides(image.patch_size, image.image_size, "model.image.patch-size", "model.image.image-size")
    divides(image.heads, image.width, "model.image.heads", "model.image.width")
    divides(text.heads, text.width, "model.text.heads", "model.text.width")
    if image.pooling == "attention":
        divides(image.pooling_heads, model.embed_dim, "model.image.pooling-heads", "model.embed-dim")
        if image.pooling_queries < 2:
            raise UserError(
                f"model.image.pooling-queries = {image.pooling_queries}: expected at least 2, one global and one for the decoder"
            )
    for name, value in (("sot-id", text.sot_id), ("eot-id", text.eot_id)):
        if not 0 < value < (text.vocab_size or math.inf) or text.sot_id == text.eot_id:
            most = "" if text.vocab_size is None else f" and below {text.vocab_size}"
            raise UserError(f"model.text.{name} = {value}: expected an id of its own, at least 1{most} (0 is padding)")
    if text.pooling == "mean" and text.attention_mask == "open_clip":
        raise UserError("model.text.pooling = mean: expected model.text.attention-mask = exact; the other is for open_clip's [CLS]")
    if model.fusion and model.family != "coca":
        raise UserError(
            f"model.fusion = True with model.family = {model.family}: expected coca, the text decoder gives the answers"
        )
    masking, similarity = model.masking, f"model.masking.similarity = {model.masking.similarity}"
    if masking.similarity == "cross_attention" and (not model.captions or image.pooling == "attention"):
        why = "a text decoder" if not model.captions else "model.image.pooling = cls or mean: the decoder sees queries, no patches"
        raise UserError(f"{similarity}: expected {why}")
    if masking.similarity == "value_path" and (image.pooling == "mean" or text.pooling == "mean"):
        raise UserError(
            f"{similarity}: expected a [CLS] in both encoders, model.image.pooling and model.text.pooling other than mean"
        )
    if text.context_length < 3:
        raise UserError(f"model.text.context-length = {text.context_length}: expected at least 3 ([SOT], a word, [EOT])")
    if model.captions:
        divides(model.text_decoder.heads, model.text_decoder.width, "model.text-decoder.heads", "model.text-decoder.width")
        if model.text_decoder.width != text.width:
            raise UserError(
                f"model.text-decoder.width = {model.text_decoder.width}: expected model.text.width = {text.width}, "
                "since the decoder goes on from the text encoder's tokens"
            )
    if model.reconstructs:
        divides(model.image_decoder.heads, model.image_decoder.width, "model.image-decoder.heads", "model.image-decoder.width")
    for name, ratio, lowest in (("high-ratio", model.masking.high_ratio, 1), ("low-ratio", model.masking.low_ratio, 0)):
        hidden = hidden_count(image.patches, ratio) if math.isfinite(ratio) else -1
        if not lowest <= hidden < image.patches:
            raise UserError(
                f"model.masking.{name} = {ratio} hides {hidden} of {image.patches} patches: expected {lowest} to "
                f"{image.patches - 1}"
            )


def check_ema_decay(decay: float | None) -> None:
    """Raises `UserError` for `optim.ema_decay` out of range."""
    if decay is not None and not 0 < decay < 1:
        raise UserError(f"optim.ema-decay = {decay}: expected a number above 0 and below 1 (0.999, say), or None for no average")


def check_weights_there(path: str) -> None:
    """Raises `UserError`: nothing is where `run.weights` says, for a run that is about to read it: one that goes on does not."""
    if not Path(path).exists():
        raise UserError(
            f"run.weights = {path} does not exist: give a run, a checkpoint, an exported folder, or open_clip's folder or file"
        )


def check_run_folder(path: str) -> None:
    """Raises `UserError`: a run would begin in the folder of something else."""
    if (Path(path) / "manifest").is_dir() and not (Path(path) / "checkpoints").is_dir():
        raise UserError(f"run.out = {path}: holds a data set (manifest/), among whose files a run has no place; choose another")


def check_tokenizer_file(path: Path) -> None:
    """Raises `UserError`: there is none."""
    if not path.is_file():
        raise UserError(
            f"tokenizer {path} does not exist: train one with `python -m data_pipeline tokenizer train --data DIR --out {path}`"
        )
