"""What the facts mean: plain functions from facts to lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.command_line import counted
from data_pipeline.errors import UserError, check_python
from sycoca_ds.launch import judgement
from sycoca_ds.launch.findings import Finding
from sycoca_ds.launch.hostfile import Host

HERE = "here"
PURPOSES = ("data", "train", "eval", "explore")
ASK_TORCH = frozenset(PURPOSES) - {"data"}
EXTRAS = {"data": ("", "data"), "train": ("", "train"), "eval": ("", "train", "eval"), "explore": ("", "train", "explore")}
"""Purpose -> extras of pyproject.toml whose packages it needs."""
LEAST_FILES, FEW_FILES = 256, 1024
"""Open files of a process: below the first a loader's workers cannot start, below the second many shards or hosts do not fit."""
ANY = -1
"""No limit, as `resource` says it."""
LEAST_MEMORY_GIB, LITTLE_MEMORY_GIB = 1.0, 4.0


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warn", "fail"]
    """fail: something that was asked about does not run; warn: it runs, but less well, or a part of it does not."""
    said: str
    mend: str = ""


def of_finding(name: str, found: Finding, said: str) -> Line:
    """A finding of `launch check` about this machine; `said` where it found nothing."""
    return Line(name, found.state if found.state != "skip" else "warn", found.said or said, found.mend)


def python(facts: dict[str, Any]) -> Iterator[Line]:
    try:
        check_python(tuple(map(int, facts["python"].split(".")[:2])))
        yield Line("Python", "ok", facts["python"])
    except UserError as error:
        said, _, mend = str(error).partition("; ")
        yield Line("Python", "fail", said, mend)


def installed(facts: dict[str, Any], purposes: tuple[str, ...]) -> Iterator[Line]:
    """A line for each purpose: the packages of its extras."""
    for purpose in purposes:
        wanted = [package for package in facts["packages"] if package.extra in EXTRAS[purpose]]
        wrong = [package for package in wanted if not package.fits]
        if wrong:
            said = ", ".join(f"{p.name}{p.wanted} ({p.version or 'not installed'})" for p in wrong[:4])
            said += f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            yield Line(f"packages, {purpose}", "fail", said, f"pip install 'sycoca-ds[{purpose}]', or `make install` in a checkout")
        else:
            yield Line(f"packages, {purpose}", "ok", f"all {len(wanted)} there, in the versions that are asked for")


def accelerator(facts: dict[str, Any]) -> Iterator[Line]:
    """torch, CUDA, NCCL, DeepSpeed: what a child process found that imported them."""
    look, cards = facts["look"], facts["gpus"]
    problem = look.get("error") or look.get("problems", {}).get("installed")
    if problem:
        yield Line("torch, DeepSpeed", "fail", problem, "pip install 'sycoca-ds[train]', or `make install` in a checkout")
        return
    found = look["installed"]
    yield Line("torch, DeepSpeed", "ok", f"torch {found['torch']}, DeepSpeed {found['deepspeed']}")
    if cards and found["gpus_of_torch"] < len(cards):
        said = f"the driver has {len(cards)} GPUs, torch {found['torch']} sees {found['gpus_of_torch']}"
        mend = "install a torch for this driver's CUDA (`nvidia-smi` names it); is CUDA_VISIBLE_DEVICES set?"
        yield Line("CUDA", "fail", said, mend)
    elif cards:
        kinds = ", ".join(dict.fromkeys(f"{name}, {memory / 1024:.0f} GiB" for name, memory, _ in cards))
        yield Line("CUDA", "ok", f"{found['cuda']}; {len(cards)} GPUs ({kinds})")
        share = judgement.BUSY_SHARE
        busy = [f"GPU {n}: {used} of {total} MiB" for n, (_, total, used) in enumerate(cards) if used > share * total]
        if busy:
            yield Line("GPU memory", "warn", f"in use: {', '.join(busy[:4])}", "end what runs there (`nvidia-smi` names it)")
    else:
        yield Line("CUDA", "warn", f"no GPU: training runs on {counted(facts['cores'], 'core')}", "nothing, if that is meant")
    if cards and found["nccl"]:
        yield Line("NCCL", "ok", found["nccl"])
    elif len(cards) > 1:
        yield Line("NCCL", "fail", "torch has none", "install a torch with CUDA: several GPUs talk by it")


def operators(facts: dict[str, Any]) -> Iterator[Line]:
    if facts["look"].get("installed"):
        ready = ", ".join(item["name"] for item in facts["look"].get("operators") or []) or "none needed"
        for found in judgement.operators({HERE: facts}):
            yield of_finding("DeepSpeed's operators", found, f"compiled: {ready}")


def programs(facts: dict[str, Any], purposes: tuple[str, ...]) -> Iterator[Line]:
    """Programs of the system. Whether DeepSpeed's operators can do without a compiler is said with these."""
    there = facts["programs"]

    def line(name: str, without: str, mend: str) -> Line:
        return Line(name, "ok", there[name]) if there[name] else Line(name, "warn", f"not found: {without}", mend)

    if "train" in purposes:
        yield line("c++", "DeepSpeed's operators cannot be compiled", "install g++ (Debian: g++, Red Hat: gcc-c++)")
        yield line("ninja", "DeepSpeed's operators cannot be compiled", "pip install ninja")
        yield line("ssh", "training on one machine only", "install openssh-client")
        yield line("pdsh", "training on one machine only", "install pdsh (Red Hat: and pdsh-rcmd-ssh)")
    if {"data", "eval"} & set(purposes):
        without = ["no METEOR, and BLEU and CIDEr that differ in the fourth place"] * ("eval" in purposes)
        without += ["no Spark"] * ("data" in purposes)
        yield line("java", "; ".join(without), "install a Java 17 runtime (Debian: default-jre-headless)")
    if "data" in purposes:
        spark = [package for package in facts["packages"] if package.extra == "spark"]
        missing = [f"{p.name}{p.wanted} ({p.version or 'not installed'})" for p in spark if not p.fits]
        if missing or not (there["java"] or facts["java_home"]):
            said = f"{', '.join(missing) or 'no Java'}: DuckDB curates, on this machine"
            yield Line("Spark", "warn", said, "only for a Spark cluster: pip install 'sycoca-ds[spark]', and Java 17")
        else:
            yield Line("Spark", "ok", ", ".join(f"{p.name} {p.version}" for p in spark))


def network(facts: dict[str, Any]) -> Iterator[Line]:
    if facts["proxies"]:
        said = f"the environment names proxies ({', '.join(f'{name}_proxy' for name in facts['proxies'])})"
        yield Line("network", "warn", said, "say to downloads whether to take them: --proxy environment, or --proxy none")
    else:
        yield Line("network", "ok", "no proxy in the environment")


def room(facts: dict[str, Any], disk_gib: float) -> Iterator[Line]:
    """Disk, shared memory, memory, open files."""
    ranks = max(1, len(facts["gpus"]))
    free = {"disk": f"{facts['disk_gib']:.1f} GiB free in {facts['folder']}", "shm": f"{facts['shm_gib']:.2f} GiB free"}
    names = {"disk": "disk", "shm": "/dev/shm"}
    for found in judgement.room({HERE: facts}, {HERE: Host(HERE, ranks)}, disk_gib):
        yield of_finding(names[found.check], found, free[found.check])
    left = facts["memory_gib"]
    state = "fail" if left < LEAST_MEMORY_GIB else "warn" if left < LITTLE_MEMORY_GIB else "ok"
    mend = "end other programs, or raise the limit of the container; fewer --data.workers take less" if state != "ok" else ""
    yield Line("memory", state, f"{left:.1f} GiB can be had", mend)
    soft, hard = facts["files"]
    said = f"{'any number' if soft == ANY else soft} a process (at most {'any' if hard == ANY else hard})"
    if soft == ANY or soft >= FEW_FILES:
        yield Line("open files", "ok", said)
    else:
        wanted = FEW_FILES if hard == ANY else min(hard, FEW_FILES)
        mend = f"`ulimit -n {wanted}` before the start; for good in /etc/security/limits.conf"
        yield Line("open files", "fail" if soft < LEAST_FILES else "warn", said, mend)


def all_lines(facts: dict[str, Any], purposes: tuple[str, ...], disk_gib: float) -> list[Line]:
    """Everything that matters for the purposes."""
    lines = [*python(facts), *installed(facts, purposes)]
    if ASK_TORCH & set(purposes):
        lines += accelerator(facts)
    if "train" in purposes:
        lines += operators(facts)
    lines += programs(facts, purposes)
    if "data" in purposes:
        lines += network(facts)
    return [*lines, *room(facts, disk_gib)]
