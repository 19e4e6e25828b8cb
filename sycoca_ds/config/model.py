"""The run's typed configuration. Every field says what it means, its unit, and where its default comes from.

Sizes live here and flow into DeepSpeed's configuration; `ds_configs/*.json` hold sharding policy only. Presets are in
`sycoca_ds/presets.py`, command-line and file parsing in `sycoca_ds/options.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from data_pipeline.errors import UserError


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
    """What ranks the patches (model/scores.py has each as a function, docs/masking.md what each was measured to find).
    By the caption: `token_max` the best match among the caption's tokens (paper eq. 7); `centred_over_pictures` the same after
    what a token matches in the step's other pictures is taken off; `cross_attention` where the text decoder looks when it says
    the caption; `value_path` eq. 7 on what the two [CLS] would read if each attended to one patch or token alone; `global` the
    match with the caption's global vector. By the picture: `centred_token_max` eq. 7 after each token's mean over the picture's
    patches is taken off, which finds what stands out whatever the caption says; `saliency` a patch's distance from the picture's
    mean patch, no text at all."""
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
    lie above the same under another picture's caption, too; `own_caption_higher` says little, since a contrast that works raises it
    wherever in the picture. None: the first where regions are given and captions leave out objects, else the second."""
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


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objectives (paper eq. 8)."""

    itc: float = 1.0
    """Image-text contrast."""
    ic: float = 2.0
    """Image captioning, lambda_IC (paper: 2)."""
    mim: float = 1.0
    """Text-guided masked image modelling, lambda_TM (paper: 1)."""
    late_interaction: float = 0.0
    """Contrast of patches and tokens that trains the very products of eq. 7 (FILIP, Yao et al. 2021): a picture's patches against
    the words of captions, each taking its best match. 0: there is none (the paper)."""
    late_interaction_group: int = 16
    """Pairs of the step that are contrasted with each other there. All of them, as FILIP does, would cost more than the whole rest
    of the step from some hundred pairs on."""


@dataclass(frozen=True)
class DataConfig:
    """What is fed. A data set folder is what `python -m data_pipeline build` leaves."""

    train: tuple[str, ...] = ()
    """Data set folders with the training shards and their manifests, one or several; paths, or URLs that fsspec reads
    (s3://, gs://, https://, ...), which need `cache`."""
    weights: tuple[float, ...] = ()
    """Share of each folder in every global batch, up to a common factor; default: by samples. Shares are whole lanes; the run
    prints what they came to. Each folder has epochs of its own."""
    validation: str | None = None
    """Data set folder for the validation losses, pictures and captions in TensorBoard; optional."""
    regions: str | None = None
    """File or folder that says where in the validation pictures the objects are (docs/masking.md): every validation then tells
    whether the masks find what the caption names; optional."""
    tokenizer: str | None = None
    """tokenizer.json; default: the one inside the first training folder."""
    lanes: int = 256
    """Independent sequences the epoch is cut into; the world size must divide it and it must divide the global batch.
    The order of samples depends on it, so it stays fixed for a run."""
    window: int = 4096
    """Samples shuffled together within a lane."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Area share of the random resized crop (open_clip's default for pretraining)."""
    flip: float = 0.0
    """Chance that a picture is mirrored. Off: captions name left and right."""
    colour_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Most change of brightness, contrast, saturation (factors 1 - x to 1 + x) and hue (share of the circle, to 0.5), as
    torchvision's ColorJitter. Off: captions name colours."""
    workers: int = 4
    """Loader processes a rank; changes nothing in the order."""
    cache: str | None = None
    """Folder on a local disk of each machine for copies of shards that are behind a URL."""
    cache_gib: float = 500.0
    """Most room for these copies on each machine; the least recently used make way."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to zero."""

    global_batch_size: int = 2048
    """Pairs per optimizer step over all ranks (paper: 2048)."""
    accumulation_steps: int = 1
    """Micro-batches a step on each rank. The step is that of one batch k times as large: the contrast sees all
    global_batch_size pairs. Above 1 both encoders run once more, without gradient, to know all features beforehand."""
    steps: int | None = None
    """Optimizer steps of the whole run; set this or `epochs`."""
    epochs: float | None = 20.0
    """Passes over the data (paper: 20 on CC12M); used where `steps` is not set."""
    lr: float = 1e-4
    """Peak learning rate (the paper does not print it)."""
    warmup_steps: int = 5000
    """Steps of linear warm-up (paper: 5,000)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's betas (open_clip's choice for transformers)."""
    eps: float = 1e-6
    """AdamW's epsilon (open_clip)."""
    weight_decay: float = 0.1
    """Applied to matrices and embeddings, never to norms, biases and the logit scale."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, updated once an optimizer step: above 0, below 1; 0.999 averages over
    the last 1,000 steps or so. It is saved with the run; evaluate.py and export.py open it with --ema. None: there is none. Costs 4
    bytes a weight, divided as ZeRO divides the optimizer's state."""


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives and how often it reports and saves."""

    out: str = "runs/sycoca"
    """Run folder: checkpoints/, tensorboard/, metrics.jsonl, best.json, config.json, run_status.json."""
    seed: int = 0
    """Seed of the weights, the sample order and the augmentation."""
    weights: str | None = None
    """Start from the weights of a run, a checkpoint or a folder that sycoca_ds/export.py wrote; parts that it lacks start
    fresh. Read at step 0 only: a run that has a checkpoint goes on from that."""
    ds_config: str = "ds_configs/zero3.json"
    """DeepSpeed policy (sharding, offload, communication); sizes in it are "auto". Relative to the current folder, then
    to the repository; the shipped ones are found from anywhere."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: that of the run's checkpoint; at step 0 bf16 on GPUs that have it, on a CPU whichever is measured faster (2 s), and
    fp32 without ZeRO. A run keeps its precision: another one given by hand is refused on resuming."""
    activation_checkpointing: str = "full"
    """Recompute blocks in the backward pass instead of keeping their activations: `full` all, `none`, `every_2` every second block
    of all parts; or by part, others none: `image_encoder=full,text_decoder=every_2`."""
    expected_world_size: int | None = None
    """Stop at once if the launcher started another number of ranks. Under `deepspeed` the hostfile says how many are meant, also
    without this; where that is missing DeepSpeed goes on with this machine alone, which is refused unless this number says that
    it is meant. Under torchrun and Slurm only this number says anything."""
    log_every: int = 10
    """Steps between log lines and TensorBoard scalars."""
    picture_every: int = 500
    """Steps between validations: losses, zero-shot retrieval, whether masks follow the caption, pictures and captions."""
    pictures: int = 8
    """Fixed validation images shown."""
    validation_samples: int = 256
    """Validation pictures behind the validation's numbers: the first ones of the folder."""
    best_metric: str | None = "validation/t2i_r1"
    """Number of the validations by which the best checkpoint is known and kept, beside the newest ones: validation/ with a recall
    (i2t_r1, t2i_r1, .. r5, .. r10), an accuracy (i2t_accuracy, t2i_accuracy) or a loss (loss, itc, ic, mim). None: no best one.
    Only a step that is both validated and saved can be it."""
    peak_tflops: float | None = None
    """bf16 TFLOP/s of one device, for the MFU; default: what is known of the GPU by its name, nothing on a CPU."""
    profile: str | None = None
    """FIRST:LAST, steps whose trace is written to profile/ in the run folder, with the ten largest costs on the console and on a
    GPU what its memory held."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is always saved at the end and on SIGTERM or SIGUSR1."""
    checkpoint_minutes: float = 30.0
    """Minutes after which a checkpoint is saved whatever the step."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept for restarts; older ones are deleted after a newer one is sealed."""
    keep_checkpoint_every: int | None = None
    """Checkpoints of steps that this number divides are kept for good."""
    checkpoints_gib: float | None = None
    """Most disk space of all checkpoints together: fewer than keep_checkpoints stay where they would take more, never less than
    one."""
    max_skipped_steps: int = 10
    """Stop after this many steps in a row were skipped, for a gradient that is not finite or a spike."""


@dataclass(frozen=True)
class GuardConfig:
    """What is kept from the weights, and what then happens (engine/safety/guard.py)."""

    spike_sigma: float = 6.0
    """A step whose loss or gradient norm is above the mean of the last good steps by so many standard deviations is skipped
    (OLMo-core: 6); 0: none is."""
    spike_window: int = 128
    """How many good steps that mean is taken over; before so many are done no step is a spike (OLMo-core: 128)."""
    recompute: bool = False
    """Compute a step that was skipped again: equal numbers mean the data, different ones a faulty device, whose rank is named.
    Costs a norm of every gradient on every rank, and a step a spike."""
    rewind_after: int = 5
    """Skipped steps in a row after which the run goes back to its last checkpoint and passes over the data since; 0: never."""
    max_rewinds: int = 2
    """Rewinds in a row without a checkpoint in between after which the run ends."""
    self_test_every: int = 0
    """Steps between tests of every device with a known matrix product and a known sum over ranks, the first at the start; 0:
    none."""


@dataclass(frozen=True)
class WatchConfig:
    """How long a rank may be silent, and a phase may take, before the job ends with a name (engine/safety/watchdog.py)."""

    beat_seconds: float = 5.0
    """Between two signs of life of a rank."""
    silent_seconds: float = 40.0
    """Without a sign of life for so long, a rank is taken for gone."""
    start_minutes: float = 30.0
    """From the meeting of the ranks to the first step: reading manifests, building the model, loading a checkpoint."""
    first_step_minutes: float = 30.0
    """The first step, in which kernels are compiled."""
    step_seconds: float = 300.0
    """Any later step, and waiting for its data."""
    save_minutes: float = 30.0
    """A save, waiting for the one before it included."""
    validation_minutes: float = 30.0
    """A validation."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything one training run depends on, saved with it as config.json."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


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
