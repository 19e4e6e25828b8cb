"""The training run from top to bottom. Every rank runs every line that holds a collective."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch

from data_pipeline.errors import UserError
from data_pipeline.files import write_text
from data_pipeline.progress import Progress, format_seconds
from sycoca_ds.config import OptimConfig, TrainConfig, plan_batches
from sycoca_ds.data.loader import Batch
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.engine.checkpoint import restoring, saving
from sycoca_ds.engine.checkpoint.initial_weights import initialise_from
from sycoca_ds.engine.feed import start_feed
from sycoca_ds.engine.launcher import find_launcher
from sycoca_ds.engine.logit_scale import bound_logit_scale
from sycoca_ds.engine.monitoring.curves import format_note
from sycoca_ds.engine.monitoring.monitor import Monitor
from sycoca_ds.engine.monitoring.profiling import Profile
from sycoca_ds.engine.monitoring.validation import Validation
from sycoca_ds.engine.policy import build_optimizer, deepspeed_config, read_policy
from sycoca_ds.engine.preparation import arithmetic, check_cache, find_tokenizer, make_plan, same_sources, settle, total_steps
from sycoca_ds.engine.runtime import Runtime, seed_everything
from sycoca_ds.engine.schedule import learning_rate
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import from_dict, to_json

log = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopSignal:
    """SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C set a flag; the loop saves and ends at the next step, on all ranks together. A
    second Ctrl-C ends the process at once.

    SIGHUP comes with a Ctrl-C in a terminal: the runner of `deepspeed` dies of it, and the kernel sends one to a process group that
    nobody's shell waits for any more and that has a stopped member, as the launcher is then.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.received, self.leads = False, runtime.leads
        self.launcher = find_launcher() if runtime.local_rank == 0 else None
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as a shell starts what is to run in the background
                signal.signal(number, self._receive)

    def hold_launcher(self) -> None:
        if self.launcher is not None:
            self.launcher.wait_for_us()

    def _receive(self, number: int, frame: object) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self.hold_launcher()
            if self.leads:  # unbuffered: what the signal interrupted may be in the middle of a print
                with contextlib.suppress(OSError):
                    os.write(2, b"\nCtrl-C: saving after this step, then the end; once more ends at once, unsaved\n")


def check_gradients(engine, step: int) -> None:
    """Without ZeRO nobody skips a step whose gradients are not finite: the weights would be lost, and then the checkpoints.

    Every rank calls it before the step's update, when its gradients are those of all ranks.

    Raises:
        RuntimeError: a gradient is not finite; the weights are still those of the step before.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    if not torch.isfinite(norm):
        raise RuntimeError(
            f"step {step + 1}: a gradient is not finite, and without ZeRO (stage 0) such a step cannot be skipped: lower optim.lr, "
            "look at the data of this step, or use ds_configs/zero1.json; the same command resumes from the last checkpoint"
        )


def on_any_rank(runtime: Runtime, *flags: bool) -> list[bool]:
    """Which flags are set on some rank. DeepSpeed's step has just waited for the device, so reading costs no further wait."""
    return [share > 0 for share in runtime.mean(torch.tensor(flags, dtype=torch.float32, device=runtime.device)).tolist()]


def train(config: TrainConfig, runtime: Runtime) -> str:
    """Trains to the end or to a stop signal; returns "completed" or "preempted".

    Raises:
        UserError: the configuration, the data or the checkpoint do not fit.
    """
    import deepspeed

    stop = StopSignal(runtime)
    run = Path(config.run.out)

    # ---- 1. data and arithmetic: refuse what does not divide before any memory is taken -------------------------------------
    batches = plan_batches(config, runtime.world_size)
    sources = same_sources(config, runtime)
    tokenizer, plan = find_tokenizer(config, sources), make_plan(config, sources, batches)
    check_cache(config, plan, sources, plan.lanes // runtime.world_size * runtime.local_world_size)
    steps = total_steps(config, plan)
    policy = read_policy(config.run.ds_config)
    stage = policy["zero_optimization"]["stage"]
    validation = Validation.of(config, tokenizer, runtime, batches.micro_batch_size)

    # ---- 2. where to start. The order is important. ---------------------------------------------------------------------------
    # 1. A finished run stays finished.
    # 2. The newest checkpoint whose files verify; rank 0 looks, all follow. A damaged newer one is named.
    # 3. Sealed checkpoints of which none verifies: an error, never a silent fresh start.
    # 4. No checkpoint: step 0, with run.weights where they are given.
    if runtime.leads:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    found = runtime.agree(_newest(run) if runtime.leads else None)
    if isinstance(found, UserError):
        raise found
    state = saving.read_state(found) if found is not None else None
    config = settle(config, state and state["config"], tokenizer, stage, runtime)
    if found is not None:
        restoring.check_resumable(state, found, config, manifest_digest=sources.digest, zero_stage=stage, tokenizer=tokenizer)
    policy = deepspeed_config(policy, config, batches)

    # ---- 3. model and engine: one seed builds the same weights on every rank --------------------------------------------------
    model = SyCoCa(config.model, config.loss, seed=config.run.seed)
    model.set_activation_checkpointing(config.run.activation_checkpointing)
    runtime.say(arithmetic(config, batches, plan, steps, model))
    if config.run.weights is not None and found is None:
        runtime.say(initialise_from(model, config.run.weights, tokenizer))
    offload = policy["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
    if found is not None and restoring.needs_resharding(state, runtime.world_size):
        policy["checkpoint"] = {**policy.get("checkpoint", {}), "load_universal": True}
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=build_optimizer(model, config.optim, offload), config=policy)
    seed_everything(config.run.seed + runtime.rank)
    first_step, skipped_before, stand_ins = 0, 0, 0
    if found is not None:
        restoring.restore(engine, runtime, found, state)
        first_step, skipped_before = state["step"], state["extra"]["skipped_steps"]
        stand_ins = state["extra"]["stand_ins"]
        runtime.say(f"resumed from {found} at step {first_step}")
        then = replace(config, optim=from_dict(OptimConfig, state["config"]["optim"], str(found / saving.STATE_FILE)))
        for sentence in restoring.changes(state, config, then.optim, old_steps=total_steps(then, plan), steps=steps):
            runtime.say(sentence)
    if runtime.leads:
        write_text(run / "config.json", to_json(config))
        if tokenizer.path.resolve() != (run / "tokenizer.json").resolve():
            shutil.copyfile(tokenizer.path, run / "tokenizer.json")
        _write_status(run, "running", first_step, steps)
    skipped_at_start = engine.skipped_steps

    # ---- 4. feed ----------------------------------------------------------------------------------------------------------------
    feed = start_feed(config, runtime, sources, plan, tokenizer, batches, first_step=first_step, last_step=steps)
    profile = Profile(config.run.profile, run, runtime, first_step, steps)
    monitor = Monitor(config, runtime, engine, plan, batches, validation, steps=steps, step=first_step, stand_ins=stand_ins)
    last_save, skipped_in_row, ended, step = time.monotonic(), 0, "completed", first_step

    def skipped() -> int:
        return skipped_before + engine.skipped_steps - skipped_at_start

    def save() -> None:
        nonlocal last_save
        began = time.monotonic()
        with monitor.paused():
            folder = saving.save(
                engine,
                runtime,
                run,
                step=step,
                samples=step * batches.global_batch_size,
                config=config,
                manifest_digest=sources.digest,
                extra={"skipped_steps": skipped(), "stand_ins": monitor.stand_ins},
            )
        last_save = time.monotonic()
        runtime.say(f"saved {folder}")
        monitor.saved(step, last_save - began)

    if first_step == 0:
        monitor.look(0)
    with Progress("train", total=steps, unit="steps", enabled=runtime.leads) as bar:
        bar.set(first_step)
        while step < steps:
            # ---------------------------------------------------------------------------------------------------------------
            lr = learning_rate(step, peak=config.optim.lr, warmup_steps=config.optim.warmup_steps, steps=steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = lr
            before = engine.skipped_steps
            with monitor.waiting():
                loaded: list[Batch] = [next(feed) for _ in range(batches.accumulation_steps)]
            micro_batches = [batch.to_device(runtime.device, config.model.image.image_size) for batch in loaded]
            mask_by = "random" if step < config.model.masking.mask_warmup else None
            shared = shared_inputs(engine, micro_batches, config.model.text.eot_id)
            for micro, more in zip(micro_batches, shared, strict=True):
                report = engine("train", **micro, mask_by=mask_by, **more)
                engine.backward(report["loss"])
                if engine.zero_optimization_stage() == 0 and engine.is_gradient_accumulation_boundary():
                    check_gradients(engine, step)
                monitor.gradients(step + 1)
                engine.step()
                monitor.add(report)
            bound_logit_scale(engine.module)
            monitor.count(loaded)
            step += 1
            # ---------------------------------------------------------------------------------------------------------------
            skipped_in_row = skipped_in_row + 1 if engine.skipped_steps > before else 0
            if skipped_in_row >= config.run.max_skipped_steps:
                raise RuntimeError(
                    f"{skipped_in_row} steps in a row to step {step} had a non-finite gradient and were skipped: "
                    "lower optim.lr or look at the data of these steps"
                )
            profile.after(step)
            if monitor.due(step):
                bar.note(format_note(monitor.report(step, lr=lr, skipped_steps=skipped())))
            bar.set(step)
            lost = next((batch.lost for batch in loaded if batch.lost), None)
            late, stopping, unreadable = on_any_rank(
                runtime, time.monotonic() - last_save > 60 * config.run.checkpoint_minutes, stop.received, lost is not None
            )
            if unreadable:  # on all ranks together, before this step can be saved
                said = next(reason for reason in runtime.gather(lost) if reason)
                raise UserError(
                    f"step {step}: {said}: the same command then resumes from the last checkpoint (with other data it would mean "
                    "other samples)"
                )
            if stopping:
                stop.hold_launcher()
            if (step % config.run.picture_every == 0 and not stopping) or step == steps:
                monitor.look(step)
            due = step % config.run.checkpoint_every == 0 or step == steps
            if due or late or stopping:
                save()
            if stopping and step < steps:
                ended = "preempted"
                break
    monitor.close()
    if runtime.leads:
        _write_status(run, ended, step, steps)
    took = format_seconds(time.monotonic() - last_save)
    runtime.say(f"{ended} at step {step} of {steps}; checkpoint {took} old in {run / 'checkpoints'}")
    return ended


def _newest(run: Path) -> Path | UserError | None:
    """The checkpoint to resume from; an error travels to the other ranks as a value."""
    try:
        folder, problems = saving.newest_whole(run / "checkpoints")
    except UserError as error:
        return error
    for problem in problems:
        log.warning("passed over a damaged checkpoint: %s", problem)
    return folder


def _write_status(run: Path, status: str, step: int, steps: int) -> None:
    """How the run stands. The launcher's exit status says nothing (it is 0 when DeepSpeed's own launcher is killed)."""
    write_text(run / "run_status.json", json.dumps({"status": status, "step": step, "steps": steps}) + "\n")


def mark_failed(run: Path) -> None:
    """Turns a run's "running" into "failed"; a run that was refused before it began has no status to change."""
    path = run / "run_status.json"
    if path.is_file():
        status = json.loads(path.read_text())
        if status["status"] == "running":
            write_text(path, json.dumps({**status, "status": "failed"}) + "\n")
