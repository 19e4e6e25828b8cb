"""`python -m sycoca_ds.capacity`: options in, a plan out."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.command_line import parse_command
from data_pipeline.errors import UserError
from data_pipeline.files import make_folder, write_text
from data_pipeline.tokenizer.bpe import TrainTokenizerCommand
from sycoca_ds.capacity.machines import Assumptions, Machine, find_gpu
from sycoca_ds.capacity.report import assumptions, beside, heading, memory_table, most_by_part, sweep_table
from sycoca_ds.capacity.search import Configuration, Search, lanes_for
from sycoca_ds.config import check_ema_decay, check_model, with_vocabulary
from sycoca_ds.engine.policy import find_policy
from sycoca_ds.launch.hostfile import whole_hostfile
from sycoca_ds.launch.processes import train_script
from sycoca_ds.options import field_names, parse_options, read_json_object, take_option
from sycoca_ds.presets import DEFAULT_PRESET, VOCABULARIES

PROGRAM = "python -m sycoca_ds.capacity"
RATES = ("memory_gib", "tflops", "memory_gbytes", "link_gbytes", "fabric_gbps", "loader_pictures", "save_gbytes", "write_gbytes")
"""Options by which something is divided, with `node_mttf_days`."""
POLICIES = tuple(f"ds_configs/{name}.json" for name in ("zero0", "zero1", "zero2", "zero3", "zero3_offload"))


@dataclass(frozen=True)
class Options(Assumptions):
    """What a run needs and costs, by arithmetic: memory a GPU, seconds a step, days, saves, and the fastest way that fits.

    All options of sycoca_ds/train.py say which run is meant (--preset, --config, --model.., --optim.., --run..); those below say
    where it is to run and what is taken for granted. docs/planning.md explains every number.
    """

    hostfile: str | None = None
    """Hostfile of the launch; or give --gpus."""
    gpus: int | None = None
    """Number of GPUs where there is no hostfile, in machines of --gpus-per-node."""
    gpus_per_node: int = 8
    """GPUs of one machine, with --gpus."""
    gpu: str = "a100-80g"
    """Kind of GPU: a100-40g, a100-80g, h100-80g, h200-141g, b200-180g, l40s-48g, rtx4090-24g; or cpu, ranks on this machine."""
    memory_gib: float | None = None
    """Instead of that kind's: memory."""
    tflops: float | None = None
    """Instead of that kind's: peak of bf16 products."""
    memory_gbytes: float | None = None
    """Instead of that kind's: rate of its memory, 1e9 bytes a second."""
    link_gbytes: float | None = None
    """Instead of that kind's: rate to the other GPUs of the machine, one direction, 1e9 bytes a second."""
    watts: float | None = None
    """Instead of that kind's: power with its share of the machine."""
    fabric_gbps: float = 800.0
    """From a machine to the others, all adapters together, one direction, 1e9 bits a second."""
    samples: float | None = None
    """Samples of the whole run; default: optim.steps times the global batch, where steps are set."""
    sweep: bool = False
    """Also print the fastest configuration at 1, 2, 4, ... 1,024 GPUs."""
    assumptions: bool = False
    """Also list what is taken for granted, before the answer."""
    out: str | None = None
    """Folder for the fastest configuration: ds_config.json, train.sh, and plan.json with all numbers."""


def machine_of(options: Options) -> tuple[Machine, str]:
    """(the cluster, its name in words).

    Raises:
        UserError: no hostfile and no number, unequal machines, an unknown GPU, an assumption out of range.
    """
    if (options.hostfile is None) == (options.gpus is None):
        raise UserError("give either --hostfile FILE or --gpus N: expected one of them, to know how many GPUs there are")
    if options.hostfile is not None:
        hosts = whole_hostfile(Path(options.hostfile))
        slots = {host.slots for host in hosts}
        if len(slots) > 1:
            raise UserError(f"--hostfile {options.hostfile}: machines of {sorted(slots)} slots; a plan needs equal ones")
        nodes, each, words = len(hosts), slots.pop(), options.hostfile
    else:
        each = min(options.gpus, options.gpus_per_node)
        if options.gpus < 1 or options.gpus_per_node < 1 or options.gpus % each:
            raise UserError(f"--gpus {options.gpus}: expected a multiple of --gpus-per-node {options.gpus_per_node}, or fewer")
        nodes, words = options.gpus // each, f"{options.gpus // each} node{'s' * (options.gpus > each)}"
    gpu = find_gpu(options.gpu, each)
    own = {item.name for item in dataclasses.fields(gpu)} - {"cpu"}
    gpu = replace(gpu, **{name: getattr(options, name) for name in own if getattr(options, name) is not None})
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise UserError(f"--{item.name.replace('_', '-')} {value}: expected a number of at least 0")
        if value == 0 and item.name in (*RATES, "node_mttf_days"):
            raise UserError(f"--{item.name.replace('_', '-')} {value}: expected a number above 0")
    for name in ("efficiency", "link_share", "load"):
        if not 0 < getattr(options, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected a share above 0, at most 1")
    if options.hidden > 1 or options.reserve >= 1:
        raise UserError(f"--hidden {options.hidden}, --reserve {options.reserve}: expected shares of at most 1")
    assume = Assumptions(**{item.name: getattr(options, item.name) for item in dataclasses.fields(Assumptions)})
    return Machine(gpu, options.gpu, nodes, each, options.fabric_gbps, assume), words


def policies_for(asked: str) -> dict[str, Mapping[str, Any]]:
    """The shipped policies and the one that is asked for, without the sizes that are "auto".

    Raises:
        UserError: there is no such file, or it is no JSON object.
    """
    return {name: read_json_object(find_policy(name), "run.ds-config") for name in dict.fromkeys((*POLICIES, asked))}


def train_command(arguments: list[str], options: Options, one: Configuration, lanes: int, policy: Path) -> str:
    """The launch of a configuration: what the user gave, with what the plan changed."""
    changed = {
        "run.ds-config": str(policy),
        "run.precision": one.sharding.precision,
        "run.activation-checkpointing": str(one.checkpointing),
        "optim.accumulation-steps": str(one.batches.accumulation_steps),
        "data.lanes": str(lanes),
        "run.expected-world-size": str(one.batches.world_size),
    }
    for name in changed:
        for spelling in (name, name.replace("-", "_")):
            _, arguments = take_option(arguments, spelling)
    if options.hostfile or one.machine.nodes > 1:
        where = ["--hostfile", options.hostfile or "HOSTFILE"]
    else:
        where = ["--num_accelerators", str(one.batches.world_size)]
    words = ["deepspeed", *where, train_script(), *arguments]
    words += [word for name, value in changed.items() for word in (f"--{name}", value)]
    return shlex.join(words)


def numbers(one: Configuration) -> dict[str, Any]:
    """A configuration for plan.json, bytes and seconds."""
    speed = one.speed
    return {
        "policy": one.name,
        "activation_checkpointing": str(one.checkpointing),
        "precision": one.sharding.precision,
        **dataclasses.asdict(one.batches),
        "memory": {**one.peak.parts, "sum": one.peak.total, "highest": one.peak.moment, "host": one.peak.host, "fits": one.fits},
        "step_seconds": {**dataclasses.asdict(speed), "sum": speed.seconds},
        "samples_per_second": speed.samples_per_second,
        "mfu": speed.mfu(one.machine),
        "saves": dataclasses.asdict(one.saves),
    }


def write_plan(folder: Path, asked: Configuration, fastest: Configuration, search: Search, command: str) -> list[str]:
    """The three files; what was written."""
    make_folder(folder)
    write_text(folder / "ds_config.json", json.dumps(fastest.policy, indent=2) + "\n")
    write_text(folder / "train.sh", f'#!/bin/sh\nexec {command} "$@"\n')
    plan = {"asked": numbers(asked), "fastest": numbers(fastest), "machine": dataclasses.asdict(search.machine)}
    write_text(folder / "plan.json", json.dumps(plan, indent=1) + "\n")
    return [f"written: {folder / name}" for name in ("ds_config.json", "train.sh", "plan.json")]


def sweep(search: Search) -> list[tuple[int, Configuration | None]]:
    """The fastest configuration at each power of two, in the same global batch."""
    found, each = [], search.machine.gpus_per_node
    for gpus in (1 << n for n in range(11)):
        if search.config.optim.global_batch_size % gpus:
            break
        machine = replace(search.machine, nodes=max(1, gpus // each), gpus_per_node=min(gpus, each))
        if machine.gpus != gpus:
            continue
        found.append((gpus, replace(search, machine=machine, config=lanes_for(search.config, gpus)).fastest()))
    return found


def plan(arguments: list[str]) -> list[str]:
    """The whole report, line by line; writes what --out asks for.

    Raises:
        UserError: an option or a configuration that cannot be planned.
    """
    options, rest = parse_command(Options, arguments, PROGRAM, return_unknown_args=True)
    config = parse_options(rest, PROGRAM, field_names(Options))
    preset = take_option(rest, "preset")[0] or DEFAULT_PRESET
    vocabulary = VOCABULARIES.get(preset, TrainTokenizerCommand.vocab_size)
    config = replace(config, model=with_vocabulary(config.model, vocabulary))
    check_model(config.model)
    if config.model.fusion:
        raise UserError("--task vqa: what questions cost is not planned here; --task caption and pretraining are")
    check_ema_decay(config.optim.ema_decay)
    machine, words = machine_of(options)
    search = Search(config, machine, policies_for(config.run.ds_config))
    asked, fastest = search.asked(), search.fastest()
    samples = options.samples
    if samples is None and config.optim.steps is not None:
        samples = float(config.optim.steps * config.optim.global_batch_size)
    lines = heading(config.model, machine, words)
    if options.assumptions:
        lines += ["", "taken for granted (--help says why; each is an option)", *assumptions(machine.assume)]
    lines += ["", "memory a GPU at the highest moment of a step, GiB, in the batches that are asked for"]
    lines += memory_table(search.table())
    lines += most_by_part(asked)
    lines += ["", "what is asked for, and the fastest that fits"]
    both = [asked] + ([fastest] if fastest is not None else [])
    lines += beside(["asked for", "fastest that fits"][: len(both)], both, samples)
    if fastest is None:
        lines.append("nothing fits: more GPUs, a smaller global batch a GPU, or a smaller model")
    if samples is None:
        lines.append("give --samples for days, GPU hours and energy")
    if options.sweep:
        lines += ["", f"the fastest that fits, the same global batch of {config.optim.global_batch_size} on other numbers of GPUs"]
        lines += sweep_table(sweep(search), samples)
    if fastest is not None:
        folder = Path(options.out) if options.out is not None else None
        policy = folder / "ds_config.json" if folder is not None else Path(fastest.name)
        command = train_command(rest, options, fastest, config.data.lanes, policy)
        lines += ["", f"to train the fastest: {command}" + ("" if config.data.train else " --data.train DATA")]
        if folder is not None:
            lines += write_plan(folder, asked, fastest, search, command)
    return lines


def main() -> int:
    print("\n".join(plan(sys.argv[1:])))
    return 0
