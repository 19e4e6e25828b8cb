"""The training run from top to bottom. Every rank runs every line that holds a collective."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.progress import Progress
from sycoca_ds.config import TrainConfig
from sycoca_ds.data.batch import Batch
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.engine.checkpoint.saving import Saver
from sycoca_ds.engine.logit_scale import bound_logit_scale
from sycoca_ds.engine.monitoring.best import best_step
from sycoca_ds.engine.monitoring.curves import format_note
from sycoca_ds.engine.monitoring.monitor import Monitor
from sycoca_ds.engine.monitoring.profiling import Profile
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.engine.ranks.stop import StopSignal
from sycoca_ds.engine.safety.guard import FaultyDevice, Guard
from sycoca_ds.engine.safety.run_lock import RunLock, held
from sycoca_ds.engine.safety.status import RunStatus, forget_failures, record_exception
from sycoca_ds.engine.safety.watchdog import Watchdog
from sycoca_ds.engine.schedule import learning_rate
from sycoca_ds.engine.start import Session, start


def train(config: TrainConfig, runtime: Runtime) -> str:
    """Trains to the end or to a stop signal; returns "completed" or "preempted".

    Raises:
        UserError: the configuration, the data or the checkpoint do not fit; another training holds the run's folder.
    """
    stop, run = StopSignal(runtime), Path(config.run.out)
    with held(run, runtime) as lock, Watchdog(run, runtime, config.watch) as watchdog:
        try:
            if runtime.leads:
                forget_failures(run)
            return run_steps(start(config, runtime), stop, lock, watchdog)
        except Exception as error:
            if not isinstance(error, UserError):
                kind = "device" if isinstance(error, FaultyDevice) else "error"
                record_exception(run, runtime.rank, kind, error, phase=watchdog.place.phase, step=watchdog.place.step)
            raise


def run_steps(session: Session, stop: StopSignal, lock: RunLock, watchdog: Watchdog) -> str:
    """Takes the steps from the session's position to the last, or to a stop signal."""
    config, runtime, engine, steps, position = session.config, session.runtime, session.engine, session.steps, session.position
    guard, saver, run = Guard(session), Saver(session), Path(config.run.out)
    monitor = Monitor(session)
    profile = Profile(config.run.profile, run, runtime, position.step, steps)
    status = RunStatus(run, steps, enabled=runtime.leads)
    feed, ended, save_due = session.feed(), "completed", False
    forward = "train_answers" if config.task == "vqa" else "train"
    status.write("running", position.step, saver.last_sealed)
    if position.step == 0:
        session.validated(monitor.look(watchdog))
    with Progress("train", total=steps, unit="steps", enabled=runtime.leads) as bar:
        bar.set(position.step)
        while position.step < steps:
            # ---------------------------------------------------------------------------------------------------------------
            lr = learning_rate(position.step, peak=config.optim.lr, warmup_steps=config.optim.warmup_steps, steps=steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = lr
            watchdog.enter("data", position.step + 1)
            with monitor.waiting():
                loaded: list[Batch] = [next(feed) for _ in range(session.batches.accumulation_steps)]
            watchdog.enter("step", position.step + 1)
            micro_batches = [batch.to_device(runtime.device, config.model.image.image_size) for batch in loaded]
            for _ in guard.attempts(loaded):
                told, shared = [], shared_inputs(engine, micro_batches, config.model.text.eot_id)
                for micro, more in zip(micro_batches, shared, strict=True):
                    told.append(engine(forward, **micro, mask_by=session.mask_by, **more))
                    engine.backward(told[-1]["loss"])
                    if engine.is_gradient_accumulation_boundary():
                        guard.before_step(told)
                    monitor.gradients()
                    engine.step()
            bound_logit_scale(engine.module)
            session.ema.update(taken=guard.in_row == 0)
            monitor.count(told, loaded)
            position.step += 1
            # ---------------------------------------------------------------------------------------------------------------
            profile.after(position.step)
            if monitor.due(position.step):
                bar.note(format_note(monitor.report(lr=lr, skipped_steps=guard.skipped)))
                status.write("running", position.step, saver.last_sealed)
            bar.set(position.step)
            late, stopping = agree_to_go_on(session, loaded, late=saver.is_late(), stopping=stop.received)
            lock.check()
            if stopping:
                stop.hold_launcher()
            elif guard.wants_to_go_back(saver):
                with watchdog.at("start", position.step):
                    guard.go_back(session.go_back())
                    saver.go_back()
                    monitor.go_back()
                    feed = None  # its loader processes and their memory go before new ones come
                    feed = session.feed()
                continue
            if (position.step % config.run.picture_every == 0 and not stopping) or position.step == steps:
                session.validated(monitor.look(watchdog))
            save_due = save_due or late or position.step % config.run.checkpoint_every == 0
            if (save_due and guard.in_row == 0) or stopping or position.step == steps:
                with watchdog.at("save", position.step), monitor.paused():
                    saver.save(guard.state(), best=lambda: best_after(saver, monitor))
                save_due = False
            saver.look()
            monitor.saved(saver)
            if stopping and position.step < steps:
                ended = "preempted"
                break
    with watchdog.at("end", position.step):
        saver.finish()
    monitor.saved(saver)
    monitor.close()
    saver.check()
    status.write(ended, position.step, saver.last_sealed, why=stop.why if ended == "preempted" else "")
    runtime.say(f"{ended} at step {position.step} of {steps}; checkpoint in {saver.checkpoints}")
    return ended


def best_after(saver: Saver, monitor: Monitor) -> int | None:
    """Step of the best checkpoint, with the one that has just been sealed."""
    monitor.saved(saver)
    return best_step(saver.run)


def agree_to_go_on(session: Session, loaded: list[Batch], *, late: bool, stopping: bool) -> tuple[bool, bool]:
    """(late, stopping), each if it is so on any rank. DeepSpeed's step has just waited for the device: reading costs no more wait.

    Raises:
        UserError: on all ranks together, before this step can be saved: a sample was lost on one of them.
    """
    runtime, lost = session.runtime, next((batch.lost for batch in loaded if batch.lost), None)
    late, stopping, unreadable = runtime.any_rank(late, stopping, lost is not None)
    if unreadable:
        said = next(reason for reason in runtime.gather(lost) if reason)
        raise UserError(
            f"step {session.position.step}: {said}: the same command then resumes from the last checkpoint (with other data that "
            "would mean other samples)"
        )
    return late, stopping
