"""How much more memory processes of this host can take before the kernel ends one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SPARE_MEMORY = 1 << 30
"""Of a host, left free beside what is put there on purpose: for what a run still grows by, a validation say, and for pages on their
way to the disk."""
LIMITS, USED = ("memory.max", "memory.high", "memory.limit_in_bytes"), ("memory.current", "memory.usage_in_bytes")
"""Files of a control group, of version 2 and of version 1."""
GIVEN_BACK = re.compile(r"^(?:total_)?(?:in)?active_file |^slab_reclaimable ")
"""Lines of its memory.stat that count pages which the kernel takes back when others want them: copies of what is on a disk. In
version 1 only those that begin with `total_` hold what the groups below it have."""


def available(root: Path = Path("/")) -> int:
    """Bytes; the smallest of what the host has and of what the limits of all control groups around this process leave.

    Args:
        root: where proc and the control groups' file systems are mounted.
    """
    host = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    return max(0, min(int(host[1]) * 1024, *(left for group in _groups(root) for left in _left(group)), 1 << 62))


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the memory control groups that this process is in, from its own to the outermost that can be seen."""
    own = {}
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            own["cgroup2" if number == "0" else "cgroup"] = PurePosixPath(path)
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        front, back = line.split(" - ", 1)
        kind, _, features = back.split(" ", 2)
        if kind not in own or (kind == "cgroup" and "memory" not in features.split(",")):
            continue
        inside, place = front.split(" ")[3:5]
        top = root / place.lstrip("/")
        below = own[kind].relative_to(inside) if own[kind].is_relative_to(inside) else PurePosixPath(".")
        folder = top / below  # in a container's own view its group is the root, whatever it is called outside
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _left(group: Path) -> Iterator[int]:
    """What each limit of a group leaves; nothing if it has none."""
    try:
        used = next(int((group / name).read_text()) for name in USED if (group / name).exists())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, StopIteration):
        return  # the outermost group of version 2 has no such files, one that is not ours may not be readable
    counts = [line for line in lines if GIVEN_BACK.match(line)]
    counts = [line for line in counts if line.startswith("total_")] or counts
    used -= sum(int(line.split()[1]) for line in counts)
    for name in LIMITS:
        try:
            limit = (group / name).read_text().strip()
        except OSError:
            continue
        if limit != "max":
            yield int(limit) - used
