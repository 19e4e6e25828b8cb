"""The command that is supervised: its words, the run that it trains, the hosts that it uses, and the same command without one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import write_text
from sycoca_ds.config import TrainConfig
from sycoca_ds.engine.batches import plan_batches
from sycoca_ds.engine.ranks.launcher import RUNNERS
from sycoca_ds.launch.hostfile import Host, whole_hostfile
from sycoca_ds.options import parse_options

HOSTFILE = ("--hostfile", "-H")
DEFAULT_HOSTFILE = Path("/job/hostfile")
"""What `deepspeed` reads where no hostfile is named, if it is there (its DLTS_HOSTFILE)."""
FILTERS = ("--include", "-i", "--exclude", "-e")
COUNT = ("--num_nodes",)
SLOTS = ("--num_gpus", "--num_accelerators")
ALONE = "--force_multi"
"""Without it DeepSpeed runs a launch of one host on the machine it is started on, whatever the hostfile says."""
WORLD = "--run.expected-world-size"


@dataclass(frozen=True)
class Job:
    """A launcher's command line around a training script."""

    words: tuple[str, ...]
    place: int
    """Where the script's name stands; before it the launcher's own words, behind it the options of train.py."""
    config: TrainConfig
    hosts: tuple[Host, ...] = ()
    """In the order of their ranks, with the slots that the launch uses; empty where no hostfile says."""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.out)

    @property
    def host_of_rank(self) -> list[str]:
        return [host.name for host in self.hosts for _ in range(host.slots)]

    @property
    def shell_options(self) -> tuple[str, ...]:
        """What ssh is told beside the host, as DeepSpeed does."""
        port = option(self.words[: self.place], ("--ssh_port",))
        return ("-p", port) if port else ()

    def why_not_without(self, host: str, min_hosts: int | None) -> str:
        """What is against going on without a host; "" if nothing."""
        try:
            self.smaller(host, min_hosts)
        except UserError as error:
            return str(error)
        return ""

    def smaller(self, host: str, min_hosts: int | None) -> tuple[Host, ...]:
        """The hosts of the same job without one of them: as many of the others as can share the batch and the lanes, a spare one
        of the hostfile in its place if there is one.

        Raises:
            UserError: it may not, or cannot, go on without.
        """
        if min_hosts is None:
            raise UserError("--min-hosts does not allow to go on with fewer hosts")
        own = self.words[: self.place]
        if not self.hosts or not by_deepspeed(own):
            raise UserError("only a launch by `deepspeed --hostfile FILE` can go on without a host")
        if host not in [other.name for other in self.hosts]:
            raise UserError(f"{host or 'the host'} is not in the hostfile")
        if any(option(own, (name,)) is not None for name in FILTERS):
            raise UserError("--include and --exclude name hosts of their own: use a hostfile with the hosts that are meant")
        if option(own, ("--master_addr",)) and host == self.hosts[0].name:
            raise UserError("--master_addr is an address of this host: leave it out, DeepSpeed asks the first host for one")
        rest = self.others(host)
        wanted = int(option(own, COUNT) or len(rest))
        for count in range(min(wanted, len(rest)), max(1, min_hosts) - 1, -1):
            if divides(self.config, sum(other.slots for other in rest[:count])):
                return rest[:count]
        raise UserError(
            f"--min-hosts {min_hosts}: no {min_hosts} or more of the other {len(rest)} hosts can share optim.global-batch-size = "
            f"{self.config.optim.global_batch_size} and data.lanes = {self.config.data.lanes} evenly"
        )

    def others(self, host: str) -> tuple[Host, ...]:
        """All hosts of the hostfile but one, spare ones beyond --num_nodes included."""
        return tuple(other for other in read_hosts(self.words, self.place, all_of_them=True) if other.name != host)

    def without(self, host: str, min_hosts: int | None, hostfile: Path) -> Job:
        """The same job on the hosts that `smaller` leaves; writes the hostfile for it. Raises `UserError`."""
        hosts, rest = self.smaller(host, min_hosts), self.others(host)
        write_text(hostfile, "".join(f"{other.name} slots={other.slots}\n" for other in rest))
        own, script = list(self.words[: self.place]), list(self.words[self.place :])
        named = option(own, HOSTFILE) is not None
        own = set_option(own, HOSTFILE, str(hostfile)) if named else [*own, HOSTFILE[0], str(hostfile)]
        own = [*set_option(own, COUNT, None), COUNT[0], str(len(hosts))]
        if len(hosts) == 1 and ALONE not in own:
            own.append(ALONE)
        if option(script, (WORLD,)) is not None:
            script = set_option(script, (WORLD,), str(sum(other.slots for other in hosts)))
        return parse_job([*own, *script])


def parse_job(words: list[str]) -> Job:
    """Reads a command line.

    Raises:
        UserError: no training script in it, options that train.py would refuse, a hostfile that cannot be used.
    """
    place = next((n for n, word in enumerate(words) if word.endswith(".py") or word == "sycoca_ds.train"), None)
    if place is None:
        raise UserError(
            f"{' '.join(words)[:100]!r} names no training script: expected `-- deepspeed ... sycoca_ds/train.py ...` (or torchrun, "
            "srun, python)"
        )
    config = parse_options(words[place + 1 :])
    return Job(tuple(words), place, config, read_hosts(words, place))


def read_hosts(words: list[str] | tuple[str, ...], place: int, all_of_them: bool = False) -> tuple[Host, ...]:
    """The hosts that a launch uses, as DeepSpeed's runner chooses them; nothing without a hostfile, or with filters by name.

    Args:
        all_of_them: those beyond --num_nodes as well.
    """
    own = words[:place]
    file = option(own, HOSTFILE)
    if file is None and by_deepspeed(own) and DEFAULT_HOSTFILE.is_file():
        file = str(DEFAULT_HOSTFILE)
    if file is None or any(option(own, (name,)) is not None for name in FILTERS):
        return ()
    hosts = whole_hostfile(Path(file))
    slots, count = option(own, SLOTS), option(own, COUNT)
    if slots is not None:
        hosts = [replace(host, slots=int(slots)) for host in hosts]
    return tuple(hosts if count is None or all_of_them else hosts[: int(count)])


def by_deepspeed(own: list[str] | tuple[str, ...]) -> bool:
    """Whether the launcher is DeepSpeed's runner."""
    return any(Path(word).name in RUNNERS for word in own)


def divides(config: TrainConfig, world_size: int) -> bool:
    """Whether so many ranks can share the batch and the lanes."""
    try:
        plan_batches(replace(config, run=replace(config.run, expected_world_size=None)), world_size)
    except UserError:
        return False
    return True


def option(words: list[str] | tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """The last value of an option, as `--name VALUE` or `--name=VALUE`."""
    found = None
    for n, word in enumerate(words):
        if word in names and n + 1 < len(words):
            found = words[n + 1]
        elif match := re.match(rf"({'|'.join(map(re.escape, names))})=(.*)", word, re.DOTALL):
            found = match[2]
    return found


def set_option(words: list[str], names: tuple[str, ...], value: str | None) -> list[str]:
    """The words with another value of an option that is there, or without it where `value` is None."""
    changed, n = [], 0
    while n < len(words):
        word = words[n]
        if word in names:
            changed += [] if value is None else [word, value]
            n += 2
            continue
        if "=" in word and word.split("=", 1)[0] in names:
            changed += [] if value is None else [f"{word.split('=', 1)[0]}={value}"]
        else:
            changed.append(word)
        n += 1
    return changed
