"""What the answers of hosts mean for a launch: plain functions from answers to findings, for any number of hosts.

`answers` has a host's name from the hostfile -> what its probe said (`probe.facts`, and `surroundings.look` under "look"), in the
order of the hostfile; hosts that could not be asked are not in it. What all hosts must have alike is compared with the first one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.errors import how_to_install
from sycoca_ds.launch.findings import Finding
from sycoca_ds.launch.hostfile import Host

Answers = Mapping[str, dict[str, Any]]

SHM_GIB_A_RANK = 0.125
"""DeepSpeed's collectives on CPUs take 66 MiB a rank there, NCCL and loader workers tens: enough, as Docker's 64 MiB is not."""
LEAST_DISK_GIB = 1.0
CLOCK_SECONDS = 2.0
"""Lock files and heartbeats of other hosts are judged by their age, in tens of seconds."""
BUSY_SHARE = 0.05
"""Of a GPU's memory; the driver itself takes less."""


def same_machine(answers: Answers) -> Iterator[Finding]:
    """Two lines of the hostfile that are one machine; another user there than on the first host."""
    seen: dict[tuple[str, str], str] = {}
    for host, found in answers.items():
        before = seen.setdefault((found["boot"], found["host"]), host)
        if before != host:
            yield Finding(
                host, "hostfile", "fail", f"is the same machine as {before}", "leave one of the two lines, with all its slots"
            )
        else:
            yield Finding(host, "hostfile", "ok")


def own_names(answers: Answers, exports: Mapping[str, str]) -> Iterator[Finding]:
    """Where gloo would listen. NCCL does not ask the own name; where all ranks have GPUs a wrong one is a warning."""
    chosen = exports.get("GLOO_SOCKET_IFNAME")
    for host, found in answers.items():
        address, interfaces = found["own_name"], found["interfaces"]
        others = " or ".join(name for name, number in interfaces.items() if not number.startswith("127.")) or "eth0"
        if len(answers) == 1:
            yield Finding(host, "name", "ok")
        elif chosen is not None and chosen not in interfaces:
            yield Finding(
                host,
                "name",
                "fail",
                f"GLOO_SOCKET_IFNAME={chosen}, but there is no such interface with an address here",
                f"it has {others}: mend .deepspeed_env; where hosts differ, give their interfaces one name",
            )
        elif chosen is None and (not address or ipaddress.ip_address(address.split("%")[0]).is_loopback):
            yield Finding(
                host,
                "name",
                "warn" if found["gpus"] else "fail",
                f"its own name resolves to {address or 'nothing'} (/etc/hosts), where no other host reaches it",
                f"write GLOO_SOCKET_IFNAME={others} into .deepspeed_env, or give the name its real address in /etc/hosts",
            )
        else:
            yield Finding(host, "name", "ok")


def code(answers: Answers) -> Iterator[Finding]:
    """The same files of this project everywhere, git or not; who has changed files is told by name."""
    first = next(iter(answers), "")
    for host, found in answers.items():
        mine, reference = found["code"], answers[first]["code"]
        other = sorted(name for name in {*mine, *reference} if mine.get(name) != reference.get(name))
        if not mine:
            yield Finding(host, "code", "fail", "the checkout is not there", "clone it to the same path, or share its file system")
        elif other:
            names = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
            yield Finding(
                host,
                "code",
                "fail",
                f"runs another revision than {first} ({found['revision'] or 'no git'}, {answers[first]['revision'] or 'no git'}): "
                f"{names}",
                "bring both to the same commit, without changes of their own (`+` marks them)",
            )
        else:
            yield Finding(host, "code", "ok")


def python(answers: Answers) -> Iterator[Finding]:
    """The same Python, torch, DeepSpeed, CUDA and NCCL everywhere, and all of them can be imported."""
    first = None
    for host, found in answers.items():
        problem = found["look"].get("error") or found["look"]["problems"].get("installed")
        if problem:
            yield Finding(host, "python", "fail", problem, f"install the environment there as here ({how_to_install('train')})")
            continue
        versions = {"python": found["python"], **found["look"]["installed"]}
        versions.pop("gpus_of_torch")
        first = first or (host, versions)
        other = [f"{name} {value}, there {first[1][name]}" for name, value in versions.items() if value != first[1][name]]
        if other:
            yield Finding(
                host, "python", "fail", f"other versions than on {first[0]}: {'; '.join(other)}", "install the same environment"
            )
        else:
            yield Finding(host, "python", "ok")


def gpus(answers: Answers, hosts: Mapping[str, Host]) -> Iterator[Finding]:
    """GPUs against slots, their memory, and whether torch sees them; without any, slots are CPU ranks."""
    anywhere = any(found["gpus"] for found in answers.values())
    kinds = Counter((name, total) for found in answers.values() for name, total, _ in found["gpus"])
    for host, found in answers.items():
        slots, there = hosts[host].slots, found["gpus"]
        seen = found["look"].get("installed", {}).get("gpus_of_torch")
        busy = [f"GPU {n}: {used} of {total} MiB" for n, (_, total, used) in enumerate(there) if used > BUSY_SHARE * total]
        other = {(name, total) for name, total, _ in there} - {kind for kind, _ in kinds.most_common(1)}
        if not anywhere:
            text = f"no GPU: slots={slots} means {slots} CPU rank{'s' * (slots > 1)} on {found['cores']} cores"
            yield Finding(host, "gpus", "warn", text, "nothing, if that is meant")
        elif len(there) < slots:
            yield Finding(
                host,
                "gpus",
                "fail",
                f"{len(there)} GPUs for {slots} slots",
                f"write slots={len(there)}, or look at nvidia-smi there",
            )
        elif seen is not None and seen < len(there):
            yield Finding(
                host,
                "gpus",
                "fail",
                f"the driver has {len(there)} GPUs, torch sees {seen}",
                "install a torch for this driver's CUDA",
            )
        elif busy:
            yield Finding(
                host, "gpus", "fail", f"memory in use: {', '.join(busy[:3])}", "end what runs there (nvidia-smi names it)"
            )
        elif other:
            text = ", ".join(f"{name} with {total} MiB" for name, total in sorted(other))
            yield Finding(host, "gpus", "warn", f"other GPUs than most: {text}", "the slowest and smallest one decides for all")
        elif len(there) > slots:
            yield Finding(
                host, "gpus", "warn", f"{len(there)} GPUs, {slots} slots: the rest stays idle", "write slots=" + str(len(there))
            )
        else:
            yield Finding(host, "gpus", "ok")


def operators(answers: Answers) -> Iterator[Finding]:
    """DeepSpeed's compiled operators are there and stay: compiling them is minutes in which a start seems to hang."""
    processor = {}
    for host, found in answers.items():
        problems = found["look"].get("problems", {})
        problem, listed = problems.get("operators"), found["look"].get("operators")
        if "installed" in problems:  # said under `python`
            continue
        if problem:
            yield Finding(host, "operators", "fail", problem, "mend that first")
            continue
        if listed is None:
            continue
        late = [item for item in listed if item["state"] != "ready"]
        missing = [item for item in late if "no " in item["state"]]
        text = "; ".join(f"{item['name']}: {item['state']}" for item in missing or late)
        first = processor.setdefault(str([item["folder"] for item in listed]), (host, found["processor"]))
        if missing:
            mend = (
                "install g++, Python's headers (Debian: python3-dev) and, into the environment, ninja (`pip install ninja`); PATH "
                "in .deepspeed_env reaches the ranks"
            )
            yield Finding(host, "operators", "fail", text, mend)
        elif late:
            mend = (
                "once, on that host: `python -m sycoca_ds.engine.operators` (the start would do it: minutes that look like a hang)"
            )
            yield Finding(host, "operators", "warn", text, mend)
        elif listed and first[1] != found["processor"]:
            yield Finding(
                host,
                "operators",
                "warn",
                f"{found['processor']}, but {first[0]} with {first[1]} has the same folder of operators, compiled for one of them",
                "set TORCH_EXTENSIONS_DIR to a folder of each host's own, and compile there",
            )
        else:
            yield Finding(host, "operators", "ok")


def data(answers: Answers) -> Iterator[Finding]:
    """The same data set on every host, with all its tars: on a shared file system or as copies."""
    first = None
    for host, found in answers.items():
        look = found["look"]
        if look.get("problems", {}).get("data"):
            yield Finding(host, "data", "fail", look["problems"]["data"], "mount or copy it to the same path there")
        elif look.get("data") is not None:
            first = first or (host, look["data"])
            if look["data"] != first[1]:
                mend = "verify both (`python -m data_pipeline verify --data DIR`), copy the right one anew"
                yield Finding(host, "data", "fail", f"is not the data that {first[0]} has", mend)
            else:
                yield Finding(host, "data", "ok")


def room(answers: Answers, hosts: Mapping[str, Host], disk_gib: float) -> Iterator[Finding]:
    """Free disk where the run is saved, and shared memory."""
    for host, found in answers.items():
        free, shm, needed = found["disk_gib"], found["shm_gib"], SHM_GIB_A_RANK * hosts[host].slots
        if free < disk_gib:
            state = "fail" if free < LEAST_DISK_GIB else "warn"
            yield Finding(
                host,
                "disk",
                state,
                f"{free:.1f} GiB free in {found['folder']}, {disk_gib:g} wanted",
                "make room, or choose another --run.out; --disk-gib says what your saves take",
            )
        else:
            yield Finding(host, "disk", "ok")
        if shm < needed:
            mend = "in a container start it with --shm-size or --ipc=host, else `mount -o remount,size=50% /dev/shm`"
            yield Finding(host, "shm", "fail", f"{shm:.2f} GiB free in /dev/shm, {needed:g} wanted for its ranks", mend)
        else:
            yield Finding(host, "shm", "ok")


def clocks(offsets: Mapping[str, tuple[float, float]]) -> Iterator[Finding]:
    """Host -> (seconds ahead of this machine, by how much that may be wrong)."""
    middle = sorted(offset for offset, _ in offsets.values())[len(offsets) // 2] if offsets else 0.0
    for host, (offset, doubt) in offsets.items():
        ahead = offset - middle
        if abs(ahead) - doubt > CLOCK_SECONDS:
            text = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the others"
            yield Finding(host, "clock", "fail", text, "switch on NTP there (`timedatectl set-ntp true`)")
        else:
            yield Finding(host, "clock", "ok")
