"""The runs of the paper's tables: lists them, or starts what is not finished, one process after another."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import check_folder, write_bytes, write_json
from data_pipeline.lock import only_one
from data_pipeline.progress import format_seconds
from sycoca_ds.ablations.following import Following, answering, whole_pictures
from sycoca_ds.ablations.launch import launcher, reason_in, with_port
from sycoca_ds.ablations.options import AblationOptions
from sycoca_ds.ablations.paired import compare
from sycoca_ds.ablations.record import make_record
from sycoca_ds.ablations.report import markdown
from sycoca_ds.ablations.runs import (
    EvaluationSet,
    Run,
    check_same,
    evaluate_command,
    final_checkpoint,
    finished_evaluation,
    found_precision,
    parse_sets,
    plan_runs,
    read_starts,
    sets_of,
    train_command,
    write_starts,
)
from sycoca_ds.ablations.tables import Row, select
from sycoca_ds.launch.display import EVALUATION_PARTS, LOADS_TORCH, TRAINING_PARTS, Display, Stage
from sycoca_ds.launch.processes import guarded, read_report, tail

GUESSED_SECONDS = {"training": 60.0, "evaluation": 15.0}
"""For the estimate of what is left, until a step of that kind has said more."""


class StepFailed(Exception):
    """A training or an evaluation ended without its result; the message is the reason."""


@dataclass(frozen=True)
class Step:
    """One process to run: a run's training, or its evaluation on one set."""

    run: Run
    chosen: EvaluationSet | None

    @property
    def kind(self) -> str:
        return "training" if self.chosen is None else "evaluation"

    @property
    def name(self) -> str:
        return "training" if self.chosen is None else f"evaluation on {self.chosen.name}"

    @property
    def log(self) -> Path:
        return self.run.folder / "logs" / f"{self.name.replace(' ', '_')}.log"


class Runner:
    """Runs what is not finished, one process after another, and shows which run of how many, its step and the time left."""

    def __init__(self, options: AblationOptions, rows: list[Row], runs: list[Run], sets: list[EvaluationSet], launch: list[str]):
        self.options, self.rows, self.runs, self.sets, self.launch = options, rows, runs, sets, launch
        self.failures: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
        self.taken: dict[str, list[float]] = defaultdict(list)
        self.steps: list[Step] = []
        stages = []
        for number, run in enumerate(runs):
            starts = read_starts(run)
            if len(starts) == 1 and "seconds" in starts[0]:  # of a run that was killed once, only a part is known
                self.taken["training"].append(starts[0]["seconds"])
            steps = [Step(run, None)] if final_checkpoint(run) is None else []
            steps += [Step(run, chosen) for chosen in sets_of(run, sets) if finished_evaluation(run, chosen) is None]
            self.steps += steps
            title = f"run {number + 1} of {len(runs)}, {run.title}"
            stages += [
                Stage(f"{title}: {step.name}", [], 0, EVALUATION_PARTS if step.chosen else TRAINING_PARTS, LOADS_TORCH)
                for step in steps
            ]
        self.display = Display(stages) if stages else None

    def expect(self, number: int, at_this_pace: float | None = None) -> None:
        """Sets the seconds of a step and all later ones from what finished ones took, or this one takes as it goes."""
        for later in range(number, len(self.steps)):
            kind = self.steps[later].kind
            known = sum(self.taken[kind]) / len(self.taken[kind]) if self.taken[kind] else None
            seconds = known or (at_this_pace if kind == self.steps[number].kind else None) or GUESSED_SECONDS[kind]
            self.display.stages[later] = replace(self.display.stages[later], seconds=seconds)

    def execute(self, number: int, command: list[str], lock: int) -> float:
        """Runs one command to its end; its seconds. Raises `StepFailed`."""
        step, began = self.steps[number], time.monotonic()
        progress = step.log.with_suffix(".progress.json")
        self.expect(number)
        self.display.begin(number)
        with guarded(command, step.log, progress, (lock,)) as process:
            while process.poll() is None:
                report = read_report(progress)
                # only the steps of a training say how long it takes as a whole, the other bars little
                if report.get("what") == "train" and report.get("total") and report["done"] >= 0.1 * report["total"]:
                    self.expect(number, (time.monotonic() - began) * report["total"] / report["done"])
                self.display.show(report)
                time.sleep(0.2)
        progress.unlink(missing_ok=True)
        if process.returncode != 0:
            raise StepFailed(f"{step.name} ended with status {process.returncode}: {reason_in(step.log)}")
        seconds = time.monotonic() - began
        self.display.stages[number] = replace(self.display.stages[number], seconds=seconds)
        return seconds

    def train(self, number: int, lock: int) -> None:
        import torch

        from sycoca_ds.eval import provenance
        from sycoca_ds.eval.suite import now

        run = self.steps[number].run
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        command, starts = train_command(with_port(self.launch), run, found_precision(self.options.out)), read_starts(run)
        made = {"git_sha": provenance.git_sha(), "versions": provenance.versions(), "hardware": provenance.hardware(device)}
        starts.append({"command": command, "date": now(), **made})
        write_starts(run, starts)
        seconds = self.execute(number, command, lock)
        if final_checkpoint(run) is None:  # the launcher's status says nothing: it is 0 when DeepSpeed's own is killed
            raise StepFailed(f"training ended early: {reason_in(self.steps[number].log)}")
        starts[-1]["seconds"] = round(seconds, 1)
        write_starts(run, starts)
        if len(starts) == 1:
            self.taken["training"].append(seconds)

    def evaluate(self, number: int, lock: int) -> None:
        step = self.steps[number]
        seconds = self.execute(number, evaluate_command(step.run, step.chosen, final_checkpoint(step.run)), lock)
        if finished_evaluation(step.run, step.chosen) is None:
            raise StepFailed(f"{step.name} left no complete results.json")
        self.taken["evaluation"].append(seconds)

    def go(self, lock: int) -> None:
        """Every step that is not finished; the tables are written anew after each.

        Raises:
            UserError: the first failure, unless `keep_going`; the end of its log is printed first.
        """
        for number, step in enumerate(self.steps):
            failures = self.failures[step.run.name, step.run.seed]
            if "training" in failures:
                continue
            if step.run.following and "training" in self.failures[step.run.row, step.run.seed]:
                failures["training"] = "the run whose weights it starts from is not trained"
                continue
            try:
                (self.train if step.chosen is None else self.evaluate)(number, lock)
            except StepFailed as failure:
                failures[step.name] = str(failure)
                print(tail(step.log), file=sys.stderr, flush=True)
                if not self.options.keep_going:
                    self.write()
                    raise UserError(
                        f"{step.run.title}: {failure}; see {step.log}, mend that and run the same command, which goes on from "
                        "there (--keep-going leaves out what fails)"
                    ) from None
                print(f"{step.run.title}: {failure}; going on", file=sys.stderr, flush=True)
            self.write()

    def write(self) -> dict[str, Any]:
        """Writes ablations.json and ablations.md from what is on the disk; returns the record."""
        record = make_record(self.rows, self.runs, self.sets, self.failures, self.options.against)
        write_json(self.options.out / "ablations.json", record)
        write_bytes(self.options.out / "ablations.md", markdown(record).encode())
        return record


def list_runs(options: AblationOptions, rows: list[Row], runs: list[Run], sets: list[EvaluationSet], launch: list[str]) -> None:
    """`--dry-run`."""
    for number, run in enumerate(runs):
        checkpoint = final_checkpoint(run)
        state = "trained" if checkpoint else "begun" if (run.folder / "config.json").exists() else "not begun"
        print(f"\nrun {number + 1} of {len(runs)}, {run.title}: {state}; for {', '.join(run.serves(rows))}")
        if checkpoint is None:
            print("  " + shlex.join(train_command(with_port(launch), run, found_precision(options.out))))
        for chosen in sets_of(run, sets):
            if finished_evaluation(run, chosen) is None:
                print("  " + shlex.join(evaluate_command(run, chosen, checkpoint or run.folder / "checkpoints/LAST")))
            else:
                print(f"  evaluated on {chosen.name}")


def followings(options: AblationOptions) -> list[Following]:
    """What goes on from each run's weights. Raises `UserError`: nothing would measure it, or it has nothing to learn from."""
    if options.whole_pictures and not options.captioning:
        raise UserError("--whole-pictures trains captioning, which nothing measures without --captioning")
    if options.answering and not (options.questions and options.answering_files):
        raise UserError(
            "--answering trains answers to questions: give those on the training's pictures with --answering-files FILE, and "
            "those that it is measured by with --questions NAME=FILE"
        )
    found = [whole_pictures(options.whole_pictures)] if options.whole_pictures else []
    return [*found, *([answering(options.answering, options.answering_files)] if options.answering else [])]


def ablate(options: AblationOptions, train_options: list[str]) -> int:
    """Refuses what can be refused before anything is started; 0, or 1 if something failed under `--keep-going`."""
    from sycoca_ds.engine.ranks.environment import prepare_deepspeed

    prepare_deepspeed()
    from sycoca_ds.engine.preparation import check_before_start

    rows = select(options.table, options.rows)
    sets = parse_sets(options.evaluate, options.captioning, options.regions, options.compositions, options.questions)
    check_folder(options.out)
    if options.against:
        compare(rows, [], [], options.against)  # the name alone
    runs = plan_runs(rows, options.seeds, options.out, train_options, options.equal_compute, followings(options))
    launch = launcher(options.launch)
    for run in runs:
        check_before_start(run.config, weights_come=run.following is not None)
        check_same(run, found_precision(options.out))
    if options.dry_run:
        list_runs(options, rows, runs, sets, launch)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends the processes we started
    refusal = f"{options.out}: another such command works there; wait for it, end it, or give another --out"
    # the guards of what we start inherit the lock: after a kill it is held until all that could still write is gone
    with only_one(options.out / ".lock", refusal) as lock:
        began, runner = time.monotonic(), Runner(options, rows, runs, sets, launch)
        try:
            runner.go(lock)
        finally:
            if runner.display is not None:
                runner.display.close()
        record = runner.write()
    page = options.out / "ablations.md"
    whole = [len(run["evaluations"]) == len(sets) for seeds in record["runs"].values() for run in seeds.values()]
    print(page.read_text())
    print(
        f"{sum(whole)} of {len(whole)} runs trained and evaluated; {format_seconds(time.monotonic() - began)}, {page}", flush=True
    )
    failed = [f"{name} seed {seed}" for (name, seed), failures in runner.failures.items() if failures]
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries again", file=sys.stderr, flush=True)
    return 1 if failed else 0
