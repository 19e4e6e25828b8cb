"""From a configuration to a run that stands at its first step: data and arithmetic, where to go on from, model and engine."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import write_text
from sycoca_ds.config import OptimConfig, TrainConfig
from sycoca_ds.data.batch import Batch
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.question_sources import QuestionSources
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.batches import BatchPlan, plan_batches
from sycoca_ds.engine.checkpoint import restoring
from sycoca_ds.engine.checkpoint.initial_weights import initialise_from
from sycoca_ds.engine.checkpoint.seal import STATE_FILE
from sycoca_ds.engine.ema import Ema
from sycoca_ds.engine.feed import start_feed
from sycoca_ds.engine.monitoring.question_validation import QuestionValidation
from sycoca_ds.engine.monitoring.validation import Validation
from sycoca_ds.engine.policy import build_engine, build_optimizer, deepspeed_config, read_policy
from sycoca_ds.engine.preparation import arithmetic, check_cache, find_tokenizer, make_plan, same_sources, settle, total_steps
from sycoca_ds.engine.ranks.runtime import Runtime, seed_everything
from sycoca_ds.engine.recompute import read_recompute
from sycoca_ds.eval.masking.verdict import warmed_up
from sycoca_ds.model.layers.blocks import compile_blocks
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import from_dict, to_json

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Where a run is. With the plan it says which samples come next."""

    step: int = 0
    """Optimizer steps done."""
    passed_over: int = 0
    """Steps' worth of samples that rewinds left out; the data are so much further than the steps."""
    stand_ins: int = 0
    """Samples that could not be read and were replaced, on all ranks."""
    masks_know: bool = False
    """Whether a validation has found that scores know the caption well enough to choose masks (`masking.warmup_until`)."""

    @property
    def data_step(self) -> int:
        return self.step + self.passed_over

    def go_to(self, state: dict[str, Any]) -> None:
        """Takes a seal's."""
        self.step, extra = state["step"], state["extra"]
        self.passed_over, self.stand_ins = extra["passed_over"], extra["stand_ins"]
        self.masks_know = extra.get("masks_know", False)

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps of it beside the step."""
        return {"passed_over": self.passed_over, "stand_ins": self.stand_ins, "masks_know": self.masks_know}


@dataclass
class Session:
    """A run that can take steps: everything that stays the same from its first to its last."""

    config: TrainConfig
    """With nothing left open."""
    runtime: Runtime
    sources: Sources
    plan: Plan
    tokenizer: Tokenizer
    batches: BatchPlan
    steps: int
    """Optimizer steps of the whole run."""
    stage: int
    """Of ZeRO."""
    validation: Validation | None
    engine: Any
    """DeepSpeed's."""
    ema: Ema
    """Of its weights."""
    state: dict[str, Any] | None
    """What the seal of the checkpoint says from which the run goes on; None: it starts."""
    position: Position = field(default_factory=Position)
    started_feed: Iterator[Batch] | None = None
    """That of the start, until it is asked for. Loader processes are forks of their rank: started before there is a model they stay
    small. Later, all that the rank rewrites or frees would stay in them as it was, offloaded states of gigabytes too."""

    def feed(self) -> Iterator[Batch]:
        """The micro-batches from the run's position on."""
        if self.started_feed is not None:
            started, self.started_feed = self.started_feed, None
            return started
        last_step = self.steps + self.position.passed_over
        first_step, parts = self.position.data_step, (self.sources, self.plan, self.tokenizer, self.batches)
        return start_feed(self.config, self.runtime, *parts, first_step=first_step, last_step=last_step)

    @property
    def mask_by(self) -> str | None:
        """ "random" while the next step's masks are it whatever the configuration says, else None."""
        masking, position = self.config.model.masking, self.position
        waits = masking.warmup_until is not None and not position.masks_know
        return "random" if waits or position.step < masking.mask_warmup else None

    def validated(self, numbers: dict[str, float]) -> None:
        """Decides by a validation's numbers, which rank 0 has, whether masks are attentive from now on. Every rank calls it."""
        masking, position = self.config.model.masking, self.position
        if masking.warmup_until is None or position.masks_know:
            return
        measured = {name.removeprefix("masking/"): value for name, value in numbers.items() if name.startswith("masking/")}
        found = self.runtime.agree(warmed_up(measured, masking.warmup_until, masking.warmup_metric))
        position.masks_know = found is not None
        if position.masks_know:
            self.runtime.say(f"step {position.step}: masks are attentive from now on: {found}")

    def go_back(self) -> dict[str, Any]:
        """Restores the newest whole checkpoint and passes over the data that were fed since; on all ranks.

        Returns:
            What its seal says.

        Raises:
            UserError: there is none.
        """
        run = Path(self.config.run.out)
        found = restoring.newest_whole_together(run, self.runtime)
        if found is None:
            raise UserError(f"{run} has no checkpoint yet to go back to: lower optim.lr, or look at the data of these steps")
        state, here = restoring.state_together(found, self.runtime), self.position.data_step
        restoring.restore(self.engine, self.runtime, found, state)
        self.ema.restore(found, state)
        self.position.go_to(state)
        self.position.passed_over = here - self.position.step
        return state


def start(config: TrainConfig, runtime: Runtime) -> Session:
    """Every rank calls it. Raises `UserError`: the configuration, the data or the checkpoint do not fit."""
    run = Path(config.run.out)

    # ---- 1. data and arithmetic: refuse what does not divide before any memory is taken -------------------------------------
    batches = plan_batches(config, runtime.world_size)
    sources = same_sources(config, runtime)
    tokenizer, plan = find_tokenizer(config, sources), make_plan(config, sources, batches)
    if isinstance(sources, QuestionSources):
        runtime.say(sources.told())
    if config.data.tokenizer is None and tokenizer.path.parent != sources.manifests[0].root:
        whose = "the run's own" if tokenizer.path.parent == Path(config.run.out) else "with whose ids run.weights were trained"
        runtime.say(f"tokenizer: {tokenizer.path}, {whose}")
    check_cache(config, plan, sources, plan.lanes // runtime.world_size * runtime.local_world_size)
    steps = total_steps(config, plan)
    policy = read_policy(config.run.ds_config)
    stage = policy["zero_optimization"]["stage"]
    kind = QuestionValidation if config.task == "vqa" else Validation
    validation = kind.of(config, tokenizer, runtime, batches.micro_batch_size)

    # ---- 2. where to start. The order is important. ---------------------------------------------------------------------------
    # 1. A finished run stays finished.
    # 2. The newest checkpoint whose files verify; all ranks look, each at its share. A damaged newer one is named.
    # 3. Checkpoints of which none verifies, or which are all gone: an error, never a silent fresh start.
    # 4. No checkpoint: step 0, with run.weights where they are given.
    found = restoring.newest_whole_together(run, runtime)
    state = None if found is None else restoring.state_together(found, runtime)
    config = settle(config, state and state["config"], tokenizer, stage, runtime)
    if found is not None:
        restoring.check_resumable(state, found, config, manifest_digest=sources.digest, zero_stage=stage, tokenizer=tokenizer)
    policy, position = deepspeed_config(policy, config, batches), Position()
    if state is not None:
        position.go_to(state)
    last_step = steps + position.passed_over
    parts = (sources, plan, tokenizer, batches)
    feed = start_feed(config, runtime, *parts, first_step=position.data_step, last_step=last_step)

    # ---- 3. model and engine: one seed builds the same weights on every rank --------------------------------------------------
    model = SyCoCa(config.model, config.loss, seed=config.run.seed)
    model.set_activation_checkpointing(read_recompute(config.run.activation_checkpointing))
    if config.run.compile == "blocks":
        runtime.say(f"compile: {compile_blocks(model)} blocks, at their first use: the first step takes longer")
    runtime.say(arithmetic(config, batches, plan, steps, model))
    if config.run.weights is not None and found is None:
        runtime.say(initialise_from(model, config.run.weights, tokenizer))
    offload = policy["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
    optimizer = build_optimizer(model, config.optim, offload, stage)
    engine = build_engine(model, optimizer, policy)
    seed_everything(config.run.seed + runtime.rank)
    ema = Ema(engine, config.optim.ema_decay)
    session = Session(config, runtime, sources, plan, tokenizer, batches, steps, stage, validation, engine, ema, state)
    session.position, session.started_feed = position, feed
    if found is not None:
        restoring.restore(engine, runtime, found, state)
        ema.restore(found, state)
        runtime.say(f"resumed from {found} at step {session.position.step}")
        then = replace(config, optim=from_dict(OptimConfig, state["config"]["optim"], str(found / STATE_FILE)))
        for sentence in restoring.changes(state, config, then.optim, old_steps=total_steps(then, plan), steps=steps):
            runtime.say(sentence)
    if runtime.leads:
        write_text(run / "config.json", to_json(config))
        if tokenizer.path.resolve() != (run / "tokenizer.json").resolve():
            shutil.copyfile(tokenizer.path, run / "tokenizer.json")
    return session
