"""Memory that is left: of the host, and in control groups of both versions, as the kernel's documents write them down."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from sycoca_ds.engine.ranks.host_memory import available
from tests.worlds.machines.control_group import small_group
from tests.worlds.processes.launching import finish, start_warm

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
VERSION_2 = "36 25 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
VERSION_1 = "36 25 0:31 {inside} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
CPU = "37 25 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


def group(root: Path, place: str, **files: int | str) -> None:
    folder = root / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")


def system(root: Path, own: str, mounts: str, free: int = 16 * GIB) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:       32000000 kB\nMemFree: 1 kB\nMemAvailable:   {free // KIB} kB\n")
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw shared:1 - ext4 /dev/root rw\n" + mounts)
    return root


def test_without_a_limit_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert available(system(tmp_path / "none", "", "")) == 16 * GIB
    root = system(tmp_path / "two", "0::/user/run\n", VERSION_2)
    group(root, "user/run", max="max", high="max", current=GIB, stat="anon 5")
    group(root, "user", max="max", high="max", current=GIB, stat="anon 5")
    group(root, "")
    assert available(root) == 16 * GIB
    root = system(tmp_path / "one", "4:memory:/run\n0::/\n", VERSION_1.format(inside="/") + CPU)
    group(root, "memory/run", limit_in_bytes=9223372036854771712, usage_in_bytes=GIB, stat="total_rss 5")
    assert available(root) == 16 * GIB


def test_version_2_the_narrowest_group_counts_and_copies_of_files_are_free(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/job/step\n", VERSION_2)
    stat = f"anon 7\nfile {3 * GIB}\nshmem {GIB}\ninactive_file {GIB}\nactive_file {MIB}\nslab_reclaimable {KIB}\nslab 9"
    group(root, "job/step", max=8 * GIB, high="max", current=5 * GIB, stat=stat)
    group(root, "job", max=20 * GIB, high="max", current=6 * GIB, stat="inactive_file 0")
    assert available(root) == 8 * GIB - 5 * GIB + GIB + MIB + KIB
    group(root, "job", max=8 * GIB)
    assert available(root) == 2 * GIB, "the group around it leaves less"
    group(root, "job", high=7 * GIB)
    assert available(root) == 1 * GIB, "and above this it is slowed down until it stands"
    group(root, "job/step", current=10 * GIB)
    assert available(root) == 0


def test_version_1_counts_what_the_groups_below_it_have(tmp_path: Path) -> None:
    root = system(tmp_path, "9:cpu,cpuacct:/x\n4:hugetlb,memory:/job/step\n0::/\n", CPU + VERSION_1.format(inside="/"))
    group(root, "cpu/x", limit_in_bytes=1, usage_in_bytes=0, stat="")
    stat = f"inactive_file {MIB}\nactive_file {MIB}\ntotal_inactive_file {GIB}\ntotal_active_file {2 * GIB}\ntotal_rss 3"
    group(root, "memory/job", limit_in_bytes=8 * GIB, usage_in_bytes=7 * GIB, stat=stat)
    group(root, "memory/job/step", limit_in_bytes=9223372036854771712, usage_in_bytes=0, stat=stat)
    assert available(root) == 4 * GIB


@pytest.mark.parametrize(
    "own, inside",
    [("/docker/abc", "/docker/abc"), ("/docker/abc", "/elsewhere"), ("/", "/"), ("/../../host/run", "/")],
)
def test_in_a_container_the_mounted_group_is_its_own(own: str, inside: str, tmp_path: Path) -> None:
    """Whatever the group is called outside, where its folder is not to be seen."""
    root = system(tmp_path, f"4:memory:{own}\n", VERSION_1.format(inside=inside))
    group(root, "memory", limit_in_bytes=2 * GIB, usage_in_bytes=GIB, stat="total_inactive_file 0")
    assert available(root) == GIB


def test_here_it_is_what_is_left(tmp_path: Path) -> None:
    """Of this machine by psutil, and in a real control group less than its limit."""
    assert available() <= psutil.virtual_memory().available + GIB
    with small_group(200 * MIB) as folder:
        if folder is None:
            pytest.skip("making a control group needs to be root")
        script = tmp_path / "inside.py"
        script.write_text(
            f"import os\nopen('{folder}/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "from sycoca_ds.engine.ranks.host_memory import available\nheld = bytearray(100 << 20)\nprint(available())\n"
        )
        status, output = finish(start_warm([], ranks=0, script=script))
        assert status == 0 and 50 * MIB < int(output) <= 100 * MIB, output
