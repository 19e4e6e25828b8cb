"""What there is on this machine. Asked with `launch check`'s own questions where it has them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any
from urllib.request import getproxies_environment

from sycoca_ds.engine.ranks import host_memory
from sycoca_ds.engine.ranks.environment import own_tools_first
from sycoca_ds.launch import probe
from sycoca_ds.launch.processes import REPOSITORY

DISTRIBUTION = "sycoca-ds"
PROGRAMS = {
    "c++": ("c++", "--version"),
    "ninja": ("ninja", "--version"),
    "java": ("java", "-version"),
    "ssh": ("ssh", "-V"),
    "pdsh": ("pdsh", "-V"),
}
"""Program -> the words that make it say its version."""
SAYS_VERSION_SECONDS = 20.0


@dataclass(frozen=True)
class Package:
    """A distribution that an extra of ours requires."""

    name: str
    wanted: str
    """As pyproject.toml says: `>=2.8,<2.14`."""
    extra: str
    """Which extra requires it; empty: always."""
    version: str | None
    """None: it is not installed."""

    @property
    def fits(self) -> bool:
        from packaging.specifiers import SpecifierSet

        return self.version is not None and SpecifierSet(self.wanted).contains(self.version, prereleases=True)


def packages(requirements: list[str] | None = None) -> list[Package]:
    """What our distribution requires, and what of it is there.

    Args:
        requirements: lines as in a wheel's metadata, `torch>=2.8; extra == "train"`; default: this installation's.
    """
    from packaging.requirements import Requirement

    found = []
    for text in importlib.metadata.requires(DISTRIBUTION) or [] if requirements is None else requirements:
        wanted = Requirement(text)
        extra = re.search(r'extra == ["\'](\w+)["\']', str(wanted.marker or ""))
        if wanted.name == DISTRIBUTION:  # `eval` takes `train` along
            continue
        if wanted.marker and not wanted.marker.evaluate({"extra": extra[1] if extra else ""}):  # for another Python
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        found.append(Package(wanted.name, str(wanted.specifier), extra[1] if extra else "", version))
    return found


def program(name: str) -> str | None:
    """The first line in which a program says its version; None: it is not there, or does not run."""
    words = PROGRAMS[name]
    path = shutil.which(words[0], path=own_tools_first())
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *words[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SAYS_VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines and done.returncode == 0 else None


def gather(out: str, ds_config: str, seconds: float, with_torch: bool) -> dict[str, Any]:
    """Everything, as `probe.facts` has it, with what doctor asks beside.

    Args:
        out: folder in which runs are saved.
        ds_config: policy, which decides what operators are needed.
        seconds: within which torch and DeepSpeed must have been imported.
        with_torch: whether to import them at all; else `look` is empty.
    """
    known = probe.facts(str(REPOSITORY), (), out)
    look = probe.surroundings(str(REPOSITORY), seconds, ds_config=ds_config, data=[]) if with_torch else {}
    return {
        **known,
        "look": look,
        "packages": packages(),
        "programs": {name: program(name) for name in PROGRAMS},
        "java_home": os.environ.get("JAVA_HOME"),
        "imghdr": importlib.util.find_spec("imghdr") is not None,
        "proxies": sorted(name for name in ("http", "https", "all") if getproxies_environment().get(name)),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "memory_gib": host_memory.available() / probe.GIB,
    }
