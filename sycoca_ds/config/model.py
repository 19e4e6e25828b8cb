"""What a model is: shapes, pooling, what is hidden from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Vision transformer, pre-norm, one [CLS] token."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 16
    """Side of a patch, pixels; must divide image_size."""
    layers: int = 12
    """Transformer blocks."""
    width: int = 768
    """Width of the residual stream."""
    heads: int = 12
    """Attention heads; must divide width."""
    pooling: Literal["cls", "mean", "attention"] = "cls"
    """What the other parts are given. `cls`: [CLS] as global vector and the patch outputs (open_clip's coca_base); `mean`: the
    patch outputs, whose mean is the global vector, so that the contrast reaches each of them; `attention`: learned queries attend
    to all outputs, the first is the global vector, the others go to the text decoder (open_clip's coca_ViT-B-32 and
    coca_ViT-L-14, `attentional_pool`)."""
    pooling_queries: int = 256
    """Queries of the attention pooling, the global one counted."""
    pooling_heads: int = 8
    """Heads of the attention pooling; must divide embed_dim."""

    @property
    def patches(self) -> int:
        """N, the number of patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: patch_size * patch_size * 3."""
        return self.patch_size * self.patch_size * 3


@dataclass(frozen=True)
class TextEncoderConfig:
    """Causal transformer with a learned [CLS] at the end."""

    context_length: int = 76
    """L, the longest caption in tokens, [SOT] and [EOT] counted, [CLS] not (open_clip's CoCa: 76)."""
    vocab_size: int | None = None
    """Rows of the token embedding; None: as many as the tokenizer has entries, of a run that has a checkpoint as many as that has.
    A number has to be at least the tokenizer's; rows beyond it are never trained."""
    layers: int = 12
    """Transformer blocks."""
    width: int = 768
    """Width of the residual stream, also that of the text decoder."""
    heads: int = 12
    """Attention heads; must divide width."""
    sot_id: int = 1
    """Id of <start_of_text> (the project's tokenizers: 1; CLIP's BPE: 49406). Padding is id 0."""
    eot_id: int = 2
    """Id of <end_of_text> (2; CLIP's BPE: 49407). The first one ends the caption: what comes after it is padding."""
    pooling: Literal["cls", "mean"] = "cls"
    """The caption's global vector: a learned [CLS] at the end (CoCa), or the mean of the real tokens' outputs; then there is no
    [CLS] and the contrast reaches every token."""
    attention_mask: Literal["exact", "open_clip"] = "exact"
    """`exact`: [CLS] attends to the caption's real tokens and itself. `open_clip`: as open_clip 3.3's CoCa was trained, with the
    padding mask shifted by one towards the end and id 0 taken for padding wherever it stands (its issues #549, #1113); for
    its weights only."""


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder layer is open_clip's pair: self-attention + MLP, then cross-attention + MLP."""

    layers: int = 12
    """Pairs of blocks."""
    width: int = 768
    """Width of the residual stream (the text decoder's must equal the text encoder's)."""
    heads: int = 12
    """Attention heads; must divide width."""


COMMON_WORDS = tuple(
    "a an the this that these those its his her their our your my it he she they we you i is are was were be been being has have "
    "had do does did will would can could may and or but nor not no of in on at to from by with for as into onto over under up "
    "down off out about after before between through while during there here some any each all both few more most other such "
    "than then very so too also just background foreground photo photos photograph photography picture pictures image images "
    "view stock illustration vector".split()
)
"""What `masking.words = content` leaves out beside [SOT], [EOT] and punctuation: words of grammar, and words for the picture."""


@dataclass(frozen=True)
class MaskingConfig:
    """Which patches are hidden from which objective (paper section 3.3). Every row of Table 5 is one setting of these."""

    mask_by: Literal["attention", "random"] = "attention"
    """How patches are ranked: by `similarity`, or by noise."""
    similarity: Literal[
        "token_max", "centred_over_pictures", "cross_attention", "value_path", "global", "centred_token_max", "saliency"
    ] = "token_max"
    """What ranks the patches (model/masking/scores.py has each as a function, docs/masking.md what each was measured to find).
    By the caption: `token_max` the best match among the caption's tokens (paper eq. 7); `centred_over_pictures` the same after
    what a token matches in the step's other pictures is taken off; `cross_attention` where the text decoder looks when it says
    the caption; `value_path` eq. 7 on what the two [CLS] would read if each attended to one patch or token alone, where both
    encoders have one; `global` the match with the caption's global vector. By the picture: `centred_token_max` eq. 7 after each
    token's mean over the picture's patches is taken off, which finds what stands out whatever the caption says; `saliency` a
    patch's distance from the picture's mean patch, no text at all."""
    words: Literal["all", "content"] = "all"
    """Which of the caption's tokens count: all (the paper), or those that say something: no [SOT], [EOT], punctuation, and none of
    `common_words`. A caption of nothing else counts whole."""
    common_words: tuple[str, ...] = COMMON_WORDS
    """Words that `content` leaves out, in lower case."""
    left_out_ids: tuple[int, ...] | None = None
    """Their ids, with those of punctuation. None: found at the start from the run's tokenizer, of a run that has a checkpoint as in
    that."""
    mask_at: Literal["input", "embedding"] = "input"
    """`input`: hidden patches are dropped before the encoder ("patches in the input image are masked");
    `embedding`: one encoder pass, hidden tokens are removed after it (cheaper)."""
    mim: Literal["text_guided", "plain", "none"] = "text_guided"
    """Masked image modelling: with cross-attention to the caption, without it, or not at all."""
    high_ratio: float = 0.5
    """r_h: share of patches, the best-matching ones, hidden from TG-MIM and rebuilt (paper: 50 %)."""
    low_ratio: float = 0.5
    """r_l: share of patches, the worst-matching ones, hidden from captioning (paper: 50 %; 0 shows all)."""
    mask_warmup: int = 0
    """Optimizer steps at the start during which masks are random whatever `mask_by` says: scores mean nothing before the
    contrast has learned something (0, the paper's way: never)."""
    warmup_until: float | None = None
    """Masks are random, also after `mask_warmup`, until a validation finds `warmup_metric` at least this; from then on they are
    attentive for good. None: steps alone decide."""
    warmup_metric: Literal["own_caption_higher", "named_over_unnamed"] | None = None
    """What has to be reached: 0.5 is chance, 1 the most (docs/monitoring.md). `named_over_unnamed` needs `data.regions`, and has to
    lie above the same under another picture's caption, too; `own_caption_higher` has to be more than coin tosses, of scores that do
    not ignore the caption, and says little even so, since a contrast that works raises it wherever in the picture. None: the first
    where regions are given and captions leave out objects, else the second."""
    target: Literal["pixels", "normalised_pixels"] = "pixels"
    """What TG-MIM rebuilds: a patch's pixels (paper eq. 5), or the same after subtracting the patch's mean and dividing by its
    deviation (MAE's norm_pix_loss)."""


@dataclass(frozen=True)
class ModelConfig:
    """Shapes of one model. `clip` has two encoders, `coca` adds the text decoder, `sycoca` the image decoder."""

    family: Literal["clip", "coca", "sycoca"] = "sycoca"
    """Which parts exist and which losses are computed."""
    embed_dim: int = 512
    """E, width of the shared image-text space."""
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    text_decoder: DecoderConfig = field(default_factory=DecoderConfig)
    image_decoder: DecoderConfig = field(default_factory=DecoderConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    fusion: bool = False
    """Whether the text encoder can read a picture, too, by a part of its own with a cross-attention block behind each of its
    blocks: for questions (--task vqa sets it; docs/finetuning.md). Of family coca only."""
    init_std: float = 0.01
    """Standard deviation of every weight matrix and embedding at the start (paper: N(0, 0.01))."""
    max_logit_scale: float = 100.0
    """Upper bound of exp(logit_scale), applied inside forward (CLIP)."""

    @property
    def image_token_width(self) -> int:
        """Width of the global image output and of the image tokens that the text decoder attends to."""
        return self.embed_dim if self.image.pooling == "attention" else self.image.width

    @property
    def captions(self) -> bool:
        return self.family != "clip"

    @property
    def reconstructs(self) -> bool:
        return self.family == "sycoca" and self.masking.mim != "none"

    @property
    def reads_to_rebuild(self) -> bool:
        """Whether the image decoder is given the caption: else the gap between two captions is zero and says nothing."""
        return self.family == "sycoca" and self.masking.mim == "text_guided"


def with_vocabulary(model: ModelConfig, size: int, left_out_ids: Sequence[int] = ()) -> ModelConfig:
    """The model with what its configuration leaves to the tokenizer.

    Args:
        size: rows of the token embedding.
        left_out_ids: what `masking.words = content` leaves out; without a tokenizer nothing is left out, which changes no shape.
    """
    if model.text.vocab_size is None:
        model = replace(model, text=replace(model.text, vocab_size=size))
    if model.masking.words == "content" and model.masking.left_out_ids is None:
        model = replace(model, masking=replace(model.masking, left_out_ids=tuple(left_out_ids)))
    return model


def hidden_count(patches: int, ratio: float) -> int:
    """Patches hidden at a ratio: `patches * ratio` rounded to nearest, halves up. In decimals: 25 * 0.58 is 14.5, no less."""
    return math.floor(patches * Decimal(str(ratio)) + Decimal("0.5"))
