"""What the numbers of an evaluation depend on beside weights and data. No torch."""

from __future__ import annotations

from dataclasses import dataclass

MOST_BEAMS = 100
"""Of a command: their keys and values are held at once, and no published captioner takes more than 10."""


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How the tasks are run (batch size changes numbers only by float rounding)."""

    tasks: tuple[str, ...] = (
        "retrieval",
        "classification",
        "captioning",
        "reconstruction",
        "masking",
        "alignment",
        "compositionality",
        "linear_probe",
        "vqa",
    )
    """Which tasks to run."""
    batch_size: int = 64
    """Images at once. Changes speed and memory; numbers only by float rounding."""
    precision: str = "fp32"
    """fp32, bf16 (autocast), or auto: bf16 on a GPU that has it, fp32 elsewhere. Scores are always computed in full
    precision."""
    caption_tokens: int = 30
    """Longest generated caption in tokens (open_clip's generate: 30)."""
    beams: int = 1
    """Beams of the captions' beam search, ranked by the mean log-probability of a token; 1 = greedy (open_clip's generate: 6
    beams)."""
    spice_dir: str | None = None
    """Folder with the jars of Stanford CoreNLP 3.6.0, which SPICE of captions needs (docs/evaluation.md); without it SPICE is
    null."""
    captions_per_image: int = 0
    """Most captions of an image in retrieval, its first ones; 0: all. Papers take five of those of COCO, where some
    images have six or seven."""
    seed: int = 0
    """Seed of random masks and of bootstrap intervals."""
    gallery: int = 6
    """Rows of pictures in the report's reconstruction and retrieval sections."""
    similarity: tuple[str, ...] = ()
    """Masking scores that the tasks masking and alignment try beside the checkpoint's own: values of model.masking.similarity, with
    `:all` or `:content` behind for another value of model.masking.words than the checkpoint's."""
    background: str = "background"
    """What makes a pixel background in the task alignment: words with commas between, the best of which competes with the names of
    the classes, or a probability (0 to 1) that the likeliest class has to reach."""
    probe_features: str = "output"
    """What a linear probe stands on: output (the image encoder's, before the projection, as CLIP does) or embedding (behind it,
    of length 1)."""
