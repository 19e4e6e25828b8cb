"""What is decided before a run starts: its tokenizer, order and augmentation, what is refused, the arithmetic it prints."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.config import (
    TrainConfig,
    WatchConfig,
    check_ema_decay,
    check_model,
    check_run_folder,
    check_weights_there,
    with_vocabulary,
)
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.question_sources import QuestionSources
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation
from sycoca_ds.engine.batches import BatchPlan
from sycoca_ds.engine.checkpoint.foreign_weights import is_foreign, own_tokenizer
from sycoca_ds.engine.checkpoint.seal import sealed
from sycoca_ds.engine.checkpoint.weights import tokenizer_of
from sycoca_ds.engine.monitoring.best import check_best_metric
from sycoca_ds.engine.monitoring.peaks import check_peak
from sycoca_ds.engine.monitoring.profiling import profiled_steps
from sycoca_ds.engine.policy import check_precision, read_policy
from sycoca_ds.engine.ranks.launcher import check_world_size
from sycoca_ds.engine.ranks.runtime import Runtime, bf16_pays
from sycoca_ds.engine.recompute import read_recompute
from sycoca_ds.model.flops import forward_flops, step_flops
from sycoca_ds.model.sycoca import SyCoCa


def total_steps(config: TrainConfig, plan: Plan) -> int:
    """Optimizer steps of the run.

    Raises:
        UserError: neither or both of optim.steps and optim.epochs are set.
    """
    optim = config.optim
    if (optim.steps is None) == (optim.epochs is None):
        raise UserError(f"optim.steps = {optim.steps}, optim.epochs = {optim.epochs}: set exactly one, the other to None")
    steps = optim.steps if optim.steps is not None else round(optim.epochs * plan.steps_per_epoch)
    if steps < 1:
        raise UserError(f"the run has {steps} steps: raise optim.steps or optim.epochs")
    return steps


def find_tokenizer(config: TrainConfig, sources: Sources) -> Tokenizer:
    """The run's tokenizer: the one that the configuration names; that of the weights it starts from, whose embedding means nothing
    with another; that of the first source.

    Raises:
        UserError: missing, larger than the model's vocabulary, or with other special ids than the model's.
    """
    named, weights = config.data.tokenizer, config.run.weights
    if named is None and weights is not None:
        theirs = own_tokenizer(Path(weights)) if is_foreign(Path(weights)) else tokenizer_of(weights)
        named = theirs or tokenizer_of(config.run.out)  # a run keeps a copy: it goes on without the weights
    tokenizer = Tokenizer(named or sources.manifests[0].root / "tokenizer.json")
    check_vocabulary(config.model.text.vocab_size, tokenizer)
    for name in ("sot_id", "eot_id"):
        wanted, found = getattr(tokenizer, name), getattr(config.model.text, name)
        if wanted != found:
            raise UserError(f"model.text.{name.replace('_', '-')} = {found}: expected {wanted}, the id in {tokenizer.path}")
    return tokenizer


def check_vocabulary(rows: int | None, tokenizer: Tokenizer) -> None:
    """Raises `UserError` for an embedding with fewer rows than the tokenizer has entries."""
    if rows is not None and rows < tokenizer.vocab_size:
        raise UserError(
            f"model.text.vocab-size = {rows}: expected at least {tokenizer.vocab_size}, the vocabulary of {tokenizer.path}; with "
            "--model.text.vocab-size None a new run takes that by itself"
        )


def settle(config: TrainConfig, saved: dict[str, Any] | None, tokenizer: Tokenizer, stage: int, runtime: Runtime) -> TrainConfig:
    """The configuration with nothing left open: what a run's checkpoint has, else what the tokenizer and this machine say.

    A measured precision may come out otherwise an hour later or on other machines, a run's must not. Every rank calls it.

    Args:
        saved: `config` of the checkpoint that the run goes on from.
        stage: the run's ZeRO stage; without ZeRO there is no bf16.
    """
    rows = tokenizer.vocab_size if saved is None else saved["model"]["text"]["vocab_size"]
    left_out = None if saved is None else saved["model"]["masking"].get("left_out_ids")
    if left_out is None:
        left_out = tokenizer.meaningless_ids(config.model.masking.common_words)
    config = replace(config, model=with_vocabulary(config.model, rows, left_out))
    check_vocabulary(config.model.text.vocab_size, tokenizer)
    if config.run.precision == "auto":
        if saved is not None:
            precision = saved["run"]["precision"]
        else:  # rank 0 measures while the others wait
            precision = "bf16" if runtime.agree(runtime.leads and stage > 0 and bf16_pays(runtime.device)) else "fp32"
        config = replace(config, run=replace(config.run, precision=precision))
    return config


def augmentation(config: TrainConfig) -> Augmentation:
    """What happens to the run's pictures. Raises `UserError`."""
    data = config.data
    return Augmentation(config.model.image.image_size, data.crop_scale, data.flip, data.colour_jitter)


def make_plan(config: TrainConfig, sources: Sources, batches: BatchPlan) -> Plan:
    """The run's sample order. Raises `UserError`."""
    if config.data.weights and isinstance(sources, QuestionSources):
        raise UserError("data.weights with --task vqa: questions are drawn from all folders alike; leave it out")
    return Plan(
        sources.kept,
        weights=config.data.weights or None,
        global_batch_size=batches.global_batch_size,
        lanes=config.data.lanes,
        window=config.data.window,
        seed=config.run.seed,
    )


def same_sources(config: TrainConfig, runtime: Runtime) -> Sources:
    """The run's data, read by every rank; tars were looked at before the start.

    Raises:
        UserError: on all ranks together, if one cannot read it or sees other manifests.
    """
    try:
        kind = QuestionSources if config.task == "vqa" else Sources
        sources, found = kind.of(config.data, check_tars=False), ""
    except UserError as error:
        sources, found = None, f"rank {runtime.rank}: {error}"
    everywhere = runtime.gather((found, sources and sources.digest))
    for problem, _ in everywhere:
        if problem:
            raise UserError(problem)
    if len(set(everywhere)) > 1:
        raise UserError(
            f"ranks see different manifests in {' '.join(config.data.train)}: wait until all machines have the same files"
        )
    return sources


def check_cache(config: TrainConfig, plan: Plan, sources: Sources, lanes: int) -> None:
    """Refuses a cache that cannot hold what the lanes of one machine read at once: shards would be fetched again and again.

    Raises:
        UserError: naming the field and the room it takes.
    """
    if not any(sources.urls):  # as of questions, whose folders are one source
        return
    parts = zip(sources.manifests, sources.urls, plan.lanes_of, strict=True)
    remote = [(manifest, own) for manifest, url, own in parts if url]
    lanes = -(-lanes * sum(own for _, own in remote) // plan.lanes)
    remote = [manifest for manifest, _ in remote]
    each = max(manifest.bytes / len(manifest.shards) for manifest in remote)
    count = plan.shards_at_once(lanes)
    needed = min(count * each, sum(manifest.bytes for manifest in remote)) / 2**30
    if needed > config.data.cache_gib:
        raise UserError(
            f"data.cache-gib = {config.data.cache_gib:g}: expected at least {needed:.3g}, for about {count} shards of "
            f"{each / 2**20:.3g} MiB that the {lanes} lanes of a machine read at once; raise it, or lower data.lanes or data.window"
        )
    room = (shutil.disk_usage(sources.cache.folder).free + sources.cache.present_bytes) / 2**30
    whole = sum(manifest.bytes for manifest in remote) / 2**30
    if room < min(config.data.cache_gib, whole):
        raise UserError(
            f"data.cache-gib = {config.data.cache_gib:g}: the disk of {sources.cache.folder} has {room:.3g} GiB for it; lower it to"
            " what may be used, with some room to spare"
        )


def check_warmup(config: TrainConfig) -> None:
    """Raises `UserError` for a warm-up of masks that no validation can end."""
    masking = config.model.masking
    if masking.warmup_until is None:
        return
    if not 0.5 <= masking.warmup_until < 1:
        raise UserError(f"model.masking.warmup-until = {masking.warmup_until}: expected 0.5, which is chance, to below 1")
    if config.data.validation is None or masking.mask_by == "random":
        missing = "data.validation" if config.data.validation is None else "model.masking.mask-by = attention"
        raise UserError(f"model.masking.warmup-until = {masking.warmup_until}: expected {missing} with it; a validation ends it")
    if masking.warmup_metric == "named_over_unnamed" and config.data.regions is None:
        raise UserError(
            "model.masking.warmup-metric = named_over_unnamed without data.regions: it is not known which objects the captions of "
            "data.validation name; give their regions, or take own_caption_higher"
        )


AT_LEAST_ONE = (
    "run.log_every",
    "run.picture_every",
    "run.checkpoint_every",
    "run.keep_checkpoint_every",
    "run.max_skipped_steps",
    "guard.spike_window",
)
"""Steps: 0 is not "never", something is divided by them."""
ABOVE_ZERO = (
    "run.checkpoint_minutes",
    "run.checkpoints_gib",
    *(f"watch.{field.name}" for field in fields(WatchConfig)),
)


def check_numbers(config: TrainConfig) -> None:
    """Raises `UserError` for a number with which a run would end in the middle, on one rank perhaps, or watch over nothing."""
    for names, least, words in ((AT_LEAST_ONE, 1, "at least 1"), (ABOVE_ZERO, math.ulp(0.0), "a finite number above 0")):
        for name in names:
            section, key = name.split(".")
            value = getattr(getattr(config, section), key)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise UserError(f"{name.replace('_', '-')} = {value}: expected {words}")
    watch = config.watch
    if watch.silent_seconds < 2 * watch.beat_seconds:
        raise UserError(
            f"watch.silent-seconds = {watch.silent_seconds:g}: expected at least twice watch.beat-seconds = "
            f"{watch.beat_seconds:g}, or every rank is silent between two signs of life"
        )


def check_before_start(config: TrainConfig, *, weights_come: bool = False) -> None:
    """Everything that can be refused before processes meet and memory is taken.

    Args:
        weights_come: `run.weights` is made by another run that goes before this one.

    Raises:
        UserError: naming the field.
    """
    check_world_size(config.run.expected_world_size)
    check_run_folder(config.run.out)
    check_numbers(config)
    check_model(config.model)
    check_ema_decay(config.optim.ema_decay)
    read_recompute(config.run.activation_checkpointing)
    check_best_metric(config)
    check_peak(config.run.peak_tflops)
    check_warmup(config)
    if config.run.profile is not None:
        profiled_steps(config.run.profile)
    if not config.data.train:
        raise UserError(
            "data.train is not set: build a data set with `python -m data_pipeline build --source SOURCE --metadata FILES "
            "--out DIR` and give it as --data.train DIR (`make demo` shows the whole way on a small drawn world)"
        )
    if (config.task == "vqa") != bool(config.data.questions):
        expected = "expected files with the questions on these pictures" if config.task == "vqa" else "they belong to --task vqa"
        raise UserError(f"data.questions = {' '.join(config.data.questions) or None} with --task {config.task}: {expected}")
    augmentation(config)
    find_tokenizer(config, Sources.of(config.data, check_tars=os.environ.get("LOCAL_RANK", "0") == "0"))
    check_precision(read_policy(config.run.ds_config), config)
    if config.task != "pretrain" and config.run.weights is None:
        raise UserError(f"--task {config.task} without run.weights: give the pretraining's run, checkpoint or exported folder")
    if config.model.fusion != (config.task == "vqa"):
        raise UserError(
            f"model.fusion = {config.model.fusion} with --task {config.task}: it is what answers questions, give --task vqa"
        )
    if config.run.weights is not None and not weights_come and not sealed(Path(config.run.out) / "checkpoints"):
        check_weights_there(config.run.weights)


def arithmetic(config: TrainConfig, batches: BatchPlan, plan: Plan, steps: int, model: SyCoCa) -> str:
    """What the run depends on, in numbers."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    forward = forward_flops(config.model, loss=config.loss)
    contrasts, pieces = bool(config.loss.itc or config.loss.late_interaction), batches.accumulation_steps
    step = step_flops(config.model, accumulation_steps=pieces if contrasts else 1, loss=config.loss)
    contrast = ", all in the contrast" + ("" if pieces == 1 else "; the encoders run once more for it") if contrasts else ""
    recomputes = any(read_recompute(config.run.activation_checkpointing).values())
    recomputed = ", activation recomputation not counted" if recomputes else ""
    return "\n".join(
        [
            f"model: {config.model.family}, {sum(parts.values()) / 1e6:.1f} M parameters ("
            + ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in parts.items())
            + ")",
            f"batch: micro {batches.micro_batch_size} x accumulation {batches.accumulation_steps} x {batches.world_size} ranks = "
            f"{batches.global_batch_size}{contrast}",
            f"data: {plan.samples} samples, {plan.steps_per_epoch} steps an epoch "
            f"({plan.samples - plan.steps_per_epoch * plan.global_batch_size} samples left over, others each epoch); "
            f"{steps} steps = {steps / plan.steps_per_epoch:.2f} epochs = {steps * plan.global_batch_size} samples",
            "compute: by the length of questions and answers, told as it comes"
            if config.task == "vqa"
            else f"compute: {forward / 1e9:.3g} GFLOP a sample forward, {step / 1e9:.3g} a training step; "
            f"{step * steps * plan.global_batch_size:.3g} FLOP for the run (captions at full length{recomputed})",
            *[
                f"mixed: source {n} ({config.data.train[n - 1]}) {own / plan.lanes:.2%} = {own * plan.per_step} of every "
                f"{plan.global_batch_size} pairs, {source.samples} samples, {steps / source.steps_per_epoch:.2f} epochs"
                for n, (own, source) in enumerate(zip(plan.lanes_of, plan.sources, strict=True), 1)
                if len(plan.sources) > 1
            ],
            f"precision: {config.run.precision}",
            *[
                f"ema: decay {decay:g}, about the last {1 / (1 - decay):,.0f} steps; at the end {decay**steps:.2g} of it are the "
                "weights of step 0"
                for decay in (config.optim.ema_decay,)
                if decay is not None
            ],
            *[
                f"warm-up: {warm} steps, the run has {steps}: the learning rate ends at {steps / warm:.1%} of optim.lr and never "
                "falls; lower optim.warmup-steps"
                for warm in (config.optim.warmup_steps,)
                if warm >= steps
            ],
        ]
    )
