"""What the engine costs beside the arithmetic that it does.

    python benchmarks/engine_overhead.py --out build/engine_overhead.json
    python benchmarks/engine_overhead.py --preset small --batch-size 8 --turns 12 --parts step

step      the training loop with everything but loading, on one rank under ZeRO 0, 1 and 3, and a bare PyTorch loop on the same
          batches, in turns: the bare step runs while the loop waits for its next batch
ranks     ZeRO-1 and ZeRO-3 on two ranks, in turns
gathers   what stage 3 gathers in one micro-batch on two ranks, and what the planner says (sycoca_ds/capacity)

Draws scenes to train on. Medians with quartiles; ratios are of the turns, so that a machine that slows down slows both sides. A
machine that does something else besides says nothing: wait until it is idle.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(REPOSITORY)]

import torch  # noqa: E402

from benchmarks.frame import Clock, Turn  # noqa: E402
from sycoca_ds.capacity.communication import traffic  # noqa: E402
from sycoca_ds.capacity.search import FULL, NONE  # noqa: E402
from sycoca_ds.capacity.states import Sharding  # noqa: E402
from sycoca_ds.capacity.step import Step  # noqa: E402
from sycoca_ds.config import ModelConfig, TrainConfig, with_vocabulary  # noqa: E402
from sycoca_ds.data.batch import Batch  # noqa: E402
from sycoca_ds.engine.batches import BatchPlan  # noqa: E402
from sycoca_ds.engine.policy import build_engine, build_optimizer, read_policy  # noqa: E402
from sycoca_ds.engine.ranks.environment import own_tools_first, prepare_deepspeed  # noqa: E402
from sycoca_ds.engine.ranks.runtime import Runtime, start_runtime  # noqa: E402
from sycoca_ds.engine.schedule import learning_rate  # noqa: E402
from sycoca_ds.eval.provenance import git_sha, hardware, versions  # noqa: E402
from sycoca_ds.model.sycoca import SyCoCa  # noqa: E402
from sycoca_ds.options import parse_options  # noqa: E402
from sycoca_ds.presets import PRESETS  # noqa: E402
from sycoca_ds.train import end_process  # noqa: E402
from tests.worlds.trainings.eval_world import make_data, make_tokenizer  # noqa: E402

WARM_UP = 4
"""Steps that are not counted: kernels are chosen, stage 3 learns the order of modules."""
VOCABULARY = 512
RANKS = 2
GATHERED = {"reduce_bucket_size": 200_000, "stage3_param_persistence_threshold": 1000, "stage3_prefetch_bucket_size": 100_000}
"""Stage 3 that cuts matrices of small models, too."""
NOT_KEPT = {**GATHERED, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0}
CASES = {
    "as shipped": ({}, False),
    "each weight kept until its next use": (GATHERED, False),
    "the same, recomputed": (GATHERED, True),
    "nothing kept": (NOT_KEPT, False),
    "nothing kept, recomputed": (NOT_KEPT, True),
}


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high, "mean": statistics.fmean(values), "most": max(values), "count": len(values)}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- the loop and a bare one, in turns -----------------------------------------------------------------------------------------


class Feed:
    """Stands between a run's feed and its loop, and measures what passes between two batches. `beside` runs before each, and is
    left out of the loop's time."""

    def __init__(self, feed: Iterator[Batch], device: torch.device, beside: Callable[[Batch], None] | None) -> None:
        self.feed, self.device, self.beside = feed, device, beside
        self.turns: list[Turn] = []
        """Of the loop, by step; the last step's is not known."""
        self.beside_turns: list[Turn] = []
        self._clock = Clock(device)
        self._began = False

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        if self._began:
            self.turns.append(self._clock.stop())
        batch = next(self.feed)
        if self.beside is not None:
            copied = dataclasses.replace(batch, pixels=batch.pixels.clone(), piece=None)  # shared memory is read once
            self._clock.start()
            self.beside(copied)
            self.beside_turns.append(self._clock.stop())
        self._clock.start()
        self._began = True
        return batch


class BareLoop:
    """Plain PyTorch doing the same arithmetic: what a short script would."""

    def __init__(self, config: TrainConfig, runtime: Runtime) -> None:
        self.config, self.device, self.step = config, runtime.device, 0
        self.model = SyCoCa(config.model, config.loss, seed=config.run.seed).to(self.device).train()
        self.optimizer = build_optimizer(self.model, config.optim, offload=False, stage=0)
        self.losses: list[torch.Tensor] = []

    def __call__(self, batch: Batch) -> None:
        optim = self.config.optim
        inputs = batch.to_device(self.device, self.config.model.image.image_size)
        self.optimizer.zero_grad()
        report = self.model("train", **inputs)
        report["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, peak=optim.lr, warmup_steps=optim.warmup_steps, steps=optim.steps)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(self.config.model.max_logit_scale))
        self.losses.append(report["loss"].detach())
        self.step += 1


def configuration(options: argparse.Namespace, data: Path, out: Path, stage: int, steps: int, every: int) -> TrainConfig:
    batch = str(options.batch_size)
    words = ["--preset", options.preset, "--data.train", str(data), "--run.out", str(out), "--data.lanes", batch]
    words += ["--optim.global-batch-size", batch, "--optim.accumulation-steps", "1", "--optim.steps", str(steps)]
    words += ["--optim.epochs", "None", "--run.precision", "fp32", "--run.activation-checkpointing", "none"]
    words += ["--run.ds-config", f"ds_configs/zero{stage}.json", "--run.checkpoint-every", str(every), "--data.workers", "1"]
    config = parse_options(words)
    return dataclasses.replace(config, model=with_vocabulary(config.model, VOCABULARY))


def run(config: TrainConfig, runtime: Runtime, beside: Callable[[Batch], None] | None) -> Feed:
    """The training loop as train.py runs it, with its feed measured."""
    from sycoca_ds.engine.loop import run_steps
    from sycoca_ds.engine.ranks.stop import StopSignal
    from sycoca_ds.engine.safety.run_lock import held
    from sycoca_ds.engine.safety.watchdog import Watchdog
    from sycoca_ds.engine.start import start

    out = Path(config.run.out)
    with held(out, runtime) as lock, Watchdog(out, runtime, config.watch) as watchdog:
        session = start(config, runtime)
        feed = Feed(session.feed(), runtime.device, beside)
        session.feed = lambda: feed
        run_steps(session, StopSignal(runtime), lock, watchdog)
        session.engine.destroy()
    feed.feed = iter(())  # ends its loader processes, for which this one would wait at its own end
    return feed


def check_losses(out: Path, expected: list[float]) -> None:
    """The loop's reports, means of the steps since the one before, against the bare loop's losses."""
    records, done = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], 0
    for record in (record for record in records if "loss" in record):
        mean = statistics.fmean(expected[done : record["step"]])
        if abs(record["loss"] - mean) > 1e-3 * mean:
            raise SystemExit(f"step {record['step']}: the loop's loss is {record['loss']}, the bare one's {mean}: two trainings")
        done = record["step"]


def measure_steps(runtime: Runtime, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data, found = scenes(folder), {}
    for stage in options.stages:
        steps = options.turns + WARM_UP + 1
        config = configuration(options, data, folder / f"zero{stage}", stage, steps, every=10 * steps)
        bare = BareLoop(config, runtime)
        feed = run(config, runtime, bare)
        check_losses(Path(config.run.out), [loss.item() for loss in bare.losses])
        turns = feed.turns[WARM_UP:], feed.beside_turns[WARM_UP : len(feed.turns)]
        loop, alone = ([turn.seconds for turn in one] for one in turns)
        ratios = [a / b for a, b in zip(loop, alone, strict=True)]
        found[f"zero{stage}"] = {"loop": spread(loop), "bare": spread(alone), "ratio": spread(ratios)}
        found[f"zero{stage}"]["turns"] = [[dataclasses.asdict(turn) for turn in one] for one in turns]
    return found


def scenes(folder: Path) -> Path:
    """A data set folder of drawn scenes with a tokenizer."""
    data = folder / "data"
    if not data.exists():
        make_data(data, images=256)
        make_tokenizer(data / "tokenizer.json")
    return data


# ---- two ranks -----------------------------------------------------------------------------------------------------------------


def inputs(model: ModelConfig, batch_size: int, runtime: Runtime) -> dict[str, torch.Tensor]:
    """Random pictures and captions of full length, others on every rank."""
    generator = torch.Generator().manual_seed(runtime.rank)
    text_BL = torch.randint(3, model.text.vocab_size, (batch_size, model.text.context_length), generator=generator)
    text_BL[:, 0], text_BL[:, -1] = model.text.sot_id, model.text.eot_id
    side = model.image.image_size
    pixels = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8, generator=generator)
    return {name: x.to(runtime.device) for name, x in {"image_BCHW": pixels, "text_BL": text_BL}.items()}


def build(options: argparse.Namespace, stage: int, zero: dict[str, int], *, recompute: bool = False, counted: bool = False) -> Any:
    """An engine of the preset's model in float32 whose policy has other values under `zero_optimization`."""
    preset = PRESETS[options.preset]
    model = SyCoCa(with_vocabulary(preset.model, VOCABULARY), seed=0).train()
    model.set_activation_checkpointing(recompute)
    policy = policy_of(stage, zero)
    sizes = {"train_micro_batch_size_per_gpu": options.batch_size // RANKS, "gradient_accumulation_steps": 1}
    policy |= {**sizes, "gradient_clipping": 1.0, "bf16": {"enabled": False}}
    policy |= {"comms_logger": {"enabled": True, "prof_all": True}} if counted else {}
    return build_engine(model, build_optimizer(model, preset.optim, False, stage), policy)


def policy_of(stage: int, zero: dict[str, int]) -> dict[str, Any]:
    policy = read_policy(f"ds_configs/zero{stage}.json")
    return {**policy, "zero_optimization": policy["zero_optimization"] | zero}


def measure_ranks(runtime: Runtime, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """As shipped, where stage 3 keeps weights of up to 100,000 numbers whole, and with smaller ones cut, too."""
    everything = {**GATHERED, "stage3_param_persistence_threshold": 0}
    ways = {"zero1": (1, {}), "zero3": (3, {}), "zero3, matrices cut": (3, GATHERED), "zero3, all cut": (3, everything)}
    engines = {name: build(options, *way) for name, way in ways.items()}
    batch = inputs(engines["zero1"].module.config, options.batch_size // RANKS, runtime)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(options.turns + WARM_UP):
        for name, engine in engines.items():
            runtime.barrier()
            start = time.perf_counter()
            engine.backward(engine("train", **batch)["loss"])
            engine.step()
            wait_for(runtime.device)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    ratios = {name: [a / b for a, b in zip(values, seconds["zero1"], strict=True)] for name, values in seconds.items()}
    return {name: {"step": spread(values), "ratio": spread(ratios[name])} for name, values in seconds.items()}


def measure_gathers(runtime: Runtime, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """By DeepSpeed's own log: what a forward and a backward pass gather, and what is gathered after the update."""
    from deepspeed.comm.comm import comms_logger

    def logged() -> dict[str, int]:
        sizes = comms_logger.comms_dict.get("all_gather_into_tensor", {})  # of the piece that a rank gives
        comms_logger.reset_data()
        return {"bytes": sum(RANKS * size * f[0] for size, f in sizes.items()), "launches": sum(f[0] for f in sizes.values())}

    found = {}
    for name, (zero, recompute) in CASES.items():
        engine = build(options, 3, zero, recompute=recompute, counted=True)
        batch = inputs(engine.module.config, options.batch_size // RANKS, runtime)
        for _ in range(WARM_UP):
            logged()
            engine.backward(engine("train", **batch)["loss"])
            in_passes = logged()
            engine.step()
            in_update = logged()
        sharding = Sharding.of(policy_of(3, zero), "fp32", "zero3")
        batches = BatchPlan(options.batch_size, options.batch_size // RANKS, 1, RANKS)
        step = Step(engine.module.config, sharding, batches, (FULL if recompute else NONE).by_part)
        planned = {t.what: {"bytes": t.bytes, "launches": t.launches} for t in traffic(step)}
        found[name] = {"weights": 4 * step.engine.total}
        found[name] |= {"micro-batch": in_passes, "micro-batch, planned": planned["weights"]}
        found[name] |= {"update": in_update, "update, planned": planned["small weights"]}
        engine.destroy()
    return found


# ---- all of it -----------------------------------------------------------------------------------------------------------------

PARTS = {
    "step": (1, measure_steps),
    "ranks": (RANKS, measure_ranks),
    "gathers": (RANKS, measure_gathers),
}
"""Ranks, and what they do."""


def on_ranks(script: Path, part: str, ranks: int, arguments: list[str]) -> dict[str, Any]:
    """A part's numbers, from processes of its own that run `script`."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks), "--master_port", port]
        command = [*(launcher if ranks > 1 else [sys.executable]), str(script), *arguments, "--part", part, "--folder", folder]
        environment = {**os.environ, "PATH": own_tools_first()}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = Path(folder, "found.json")
        if done.returncode or not found.exists():
            raise SystemExit(f"{part}: ended with status {done.returncode}:\n{done.stdout[-3000:]}")
        return json.loads(found.read_text())


def measure_apart(measure: Callable[..., dict[str, Any]], options: argparse.Namespace) -> None:
    """In such a process: measures, leaves the numbers in the folder, and ends."""
    prepare_deepspeed()
    if options.threads:  # ranks take as many as there are processors for them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    runtime = start_runtime()
    found = measure(runtime, options, options.folder)
    if runtime.leads:
        (options.folder / "found.json").write_text(json.dumps(found))
    runtime.leave()
    end_process(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a process of `on_ranks` is told."""
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs of all ranks together")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--threads", type=int, help="of all ranks together, on a CPU; default: the processors of this machine")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)


def ms(values: dict[str, float]) -> str:
    return f"{1e3 * values['median']:.0f} ({1e3 * values['low']:.0f} to {1e3 * values['high']:.0f})"


def percent(ratio: dict[str, float]) -> str:
    median, low, high = (100 * (ratio[name] - 1) for name in ("median", "low", "high"))
    return f"{median:+.1f} % ({low:+.1f} to {high:+.1f})"


def table(part: str, found: dict[str, Any]) -> Iterator[str]:
    """The lines of a part's table, in Markdown."""
    if part == "step":
        yield from ("| | loop, ms | bare PyTorch, ms | more |", "|---|---|---|---|")
        for name, facts in found.items():
            yield f"| {name} | {ms(facts['loop'])} | {ms(facts['bare'])} | {percent(facts['ratio'])} |"
    elif part == "ranks":
        yield from ("| | a step, ms | more than ZeRO-1 |", "|---|---|---|")
        for name, facts in found.items():
            yield f"| {name} | {ms(facts['step'])} | {percent(facts['ratio'])} |"
    else:
        yield from ("| stage 3 | | MB gathered (planned) | of the weights | launches (planned) |", "|---|---|---|---|---|")
        for name, facts in found.items():
            for when in ("micro-batch", "update"):
                own, planned = facts[when], facts[f"{when}, planned"]
                size = f"{own['bytes'] / 1e6:.2f} ({planned['bytes'] / 1e6:.2f}) | {own['bytes'] / facts['weights']:.2f} x"
                yield f"| {name} | {when} | {size} | {own['launches']} ({planned['launches']}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--stages", type=int, nargs="+", choices=(0, 1, 2, 3), default=[0, 1, 3], help="of ZeRO, for the part step")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, help="JSON of all numbers")
    options = parser.parse_args()
    if options.part:
        measure_apart(PARTS[options.part][1], options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {"command": " ".join(sys.argv[1:]), "commit": git_sha(), **versions(), **hardware(device)}
    print(
        f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, deepspeed {facts['deepspeed']}, ", end=""
    )
    print(f"{options.preset}, batch {options.batch_size}, float32, {options.turns} turns; medians (quartiles)")
    for part in options.parts:
        facts[part] = on_ranks(Path(__file__), part, PARTS[part][0], sys.argv[1:])
        print("\n".join(["", *table(part, facts[part])]), flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
