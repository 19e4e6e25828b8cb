"""How a model is trained: losses, data, optimizer, the run's folder and rhythm, what guards and watches it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sycoca_ds.config.model import ModelConfig


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
    questions: tuple[str, ...] = ()
    """With --task vqa: the questions on these pictures, one or several files: SPLIT_questions.json of a drawn world, or VQA v2's
    QUESTIONS.json,ANNOTATIONS.json (docs/finetuning.md)."""
    validation_questions: str | None = None
    """The same of the pictures in `validation`, one file."""
    regions: str | None = None
    """File or folder that says where in the validation pictures the objects are (docs/masking.md): every validation then tells
    whether the masks find what the caption names; optional."""
    tokenizer: str | None = None
    """tokenizer.json; default: the one that `run.weights` were trained with, else the one inside the first training folder."""
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
    """Start from the weights of a run, a checkpoint, a folder that sycoca_ds/export.py wrote, or open_clip's folder or file of a
    CoCa or CLIP; parts that it lacks start fresh, and the log says which, and what was left. Read at step 0 only: a run that has a
    checkpoint goes on from that."""
    ds_config: str = "ds_configs/zero3.json"
    """DeepSpeed policy (sharding, offload, communication); sizes in it are "auto". Relative to the current folder, then
    to the repository; the shipped ones are found from anywhere."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: that of the run's checkpoint; at step 0 bf16 on GPUs that have it, on a CPU whichever is measured faster (2 s), and
    fp32 without ZeRO. A run keeps its precision: another one given by hand is refused on resuming."""
    activation_checkpointing: str = "full"
    """Recompute blocks in the backward pass instead of keeping their activations: `full` all, `none`, `every_2` every second block
    of all parts; or by part, others none: `image_encoder=full,text_decoder=every_2`."""
    compile: Literal["none", "blocks"] = "none"
    """`blocks`: torch's compiler makes one kernel of the norms, sums and activations between the attentions of each block. The
    first step waits for it, minutes on a CPU; numbers differ by rounding (docs/performance.md says where it pays)."""
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
    (i2t_r1, t2i_r1, .. r5, .. r10), an accuracy (i2t_accuracy, t2i_accuracy) or a loss (loss, itc, ic, mim); of `--task vqa`
    vqa_accuracy, vqa or loss. None: no best one. Only a step that is both validated and saved can be it."""
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
    """A step whose loss or gradient norm is above the mean of the last steps by so many standard deviations is skipped
    (OLMo-core: 6); 0: none is."""
    spike_window: int = 128
    """How many steps that mean is taken over; before so many are done no step is a spike (OLMo-core: 128)."""
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

    task: Literal["pretrain", "caption", "vqa"] = "pretrain"
    """What is trained: pretraining; captions alone, on whole pictures (`caption`); or answers to questions (`vqa`), both from the
    weights in run.weights. Given as --task it also brings that task's losses and optimizer (docs/finetuning.md)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
