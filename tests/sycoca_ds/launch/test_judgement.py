"""What answers of hosts mean: every rule on answers made by hand, so also those of GPUs and of many hosts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sycoca_ds.launch import judgement
from sycoca_ds.launch.findings import Finding
from sycoca_ds.launch.hostfile import Host

A100 = ["NVIDIA A100-SXM4-80GB", 81920, 4]


def answers(hosts: int = 3, gpus: int = 8) -> dict[str, dict[str, Any]]:
    """Hosts between which there is nothing to choose."""
    return {
        f"n{number}": {
            "host": f"n{number}",
            "boot": f"boot {number}",
            "python": "3.11.7",
            "addresses": [f"10.0.0.{number}"],
            "own_name": f"10.0.0.{number}",
            "interfaces": {"lo": "127.0.0.1", "ib0": f"10.0.0.{number}"},
            "code": {"sycoca_ds/train.py": "abc", "ds_configs/zero3.json": "def"},
            "revision": "0123456789ab",
            "processor": "AMD EPYC 7763",
            "cores": 64,
            "gpus": [list(A100) for _ in range(gpus)],
            "folder": "/shared",
            "disk_gib": 100.0,
            "shm_gib": 500.0,
            "look": {
                "installed": {"torch": "2.13.0", "gpus_of_torch": gpus, "cuda": "12.8", "nccl": "2.27", "deepspeed": "0.19.8"},
                "operators": [{"name": "cpu_adam", "folder": "/shared/ops", "state": "ready"}],
                "data": "d1",
                "problems": {},
            },
        }
        for number in range(hosts)
    }


HOSTS = {f"n{number}": Host(f"n{number}", 8) for number in range(128)}
RULES: dict[str, Callable[[dict], list[Finding]]] = {
    "hostfile": lambda found: [*judgement.same_machine(found)],
    "name": lambda found: [*judgement.own_names(found, {})],
    "code": lambda found: [*judgement.code(found)],
    "python": lambda found: [*judgement.python(found)],
    "gpus": lambda found: [*judgement.gpus(found, HOSTS)],
    "operators": lambda found: [*judgement.operators(found)],
    "data": lambda found: [*judgement.data(found)],
    "disk": lambda found: [one for one in judgement.room(found, HOSTS, 60.0) if one.check == "disk"],
    "shm": lambda found: [one for one in judgement.room(found, HOSTS, 60.0) if one.check == "shm"],
}


@pytest.mark.parametrize("hosts", [1, 2, 128])
@pytest.mark.parametrize("rule", list(RULES))
def test_hosts_that_are_alike_are_green(rule: str, hosts: int) -> None:
    assert RULES[rule](answers(hosts)) == [Finding(f"n{number}", rule, "ok") for number in range(hosts)]


def changed(path: str, value: Any) -> Callable[[dict], None]:
    """Sets a place in a host's answer, `look > data` for example."""

    def change(answer: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(" > ")]
        for part in way:
            answer = answer[part]
        answer[last] = copy.deepcopy(value)

    return change


@pytest.mark.parametrize(
    "rule, path, value, state, said, mend",
    [
        ("name", "own_name", "127.0.1.1", "warn", "own name resolves to 127.0.1.1", "GLOO_SOCKET_IFNAME=ib0"),
        ("name", "own_name", "", "warn", "resolves to nothing", "/etc/hosts"),
        ("name", "own_name", "::1", "warn", "resolves to ::1", "/etc/hosts"),
        ("code", "code", {}, "fail", "the checkout is not there", "same path"),
        ("code", "code > sycoca_ds/train.py", "xyz", "fail", "another revision than n0 (012345", "same commit"),
        ("python", "python", "3.12.1", "fail", "python 3.12.1, there 3.11.7", "same environment"),
        ("python", "look > installed > nccl", "2.20", "fail", "nccl 2.20, there 2.27", "same environment"),
        ("python", "look > problems", {"installed": "ImportError: libcudart"}, "fail", "libcudart", "make install"),
        ("python", "look", {"error": "took longer than 60 s"}, "fail", "took longer than 60 s", "make install"),
        ("gpus", "gpus", [A100] * 7, "fail", "7 GPUs for 8 slots", "slots=7"),
        ("gpus", "gpus", [], "fail", "0 GPUs for 8 slots", "nvidia-smi"),
        ("gpus", "gpus", [A100] * 9, "fail", "the driver has 9 GPUs, torch sees 8", "CUDA"),
        ("gpus", "gpus > 3", [*A100[:2], 70_000], "fail", "GPU 3: 70000 of 81920 MiB", "end what runs"),
        ("gpus", "gpus > 0", ["NVIDIA A100-PCIE-40GB", 40960, 0], "warn", "A100-PCIE-40GB with 40960 MiB", "slowest"),
        ("operators", "look > operators > 0 > state", "no ninja on PATH (/bin)", "fail", "no ninja on PATH", "ninja"),
        ("operators", "look > operators > 0 > state", "not compiled", "warn", "cpu_adam: not compiled", "engine.operators"),
        ("operators", "look > operators > 0 > state", "out of date to /bin/ninja", "warn", "out of date", "engine.operators"),
        ("operators", "look > problems", {"operators": "run.ds-config = x: no such file"}, "fail", "no such file", "mend that"),
        ("operators", "processor", "Intel Xeon", "warn", "n0 with AMD EPYC 7763", "TORCH_EXTENSIONS_DIR"),
        ("data", "look > data", "d2", "fail", "is not the data that n0 has", "verify"),
        ("data", "look > problems", {"data": "/data does not exist"}, "fail", "/data does not exist", "mount"),
        ("disk", "disk_gib", 20.0, "warn", "20.0 GiB free in /shared, 60 wanted", "--disk-gib"),
        ("disk", "disk_gib", 0.5, "fail", "0.5 GiB free", "make room"),
        ("shm", "shm_gib", 0.0625, "fail", "0.06 GiB free in /dev/shm, 1 wanted", "--shm-size"),
    ],
)
def test_one_host_that_differs_is_named(rule: str, path: str, value: Any, state: str, said: str, mend: str) -> None:
    found = answers()
    changed(path, value)(found["n1"])
    first, second, third = RULES[rule](found)
    assert (first.state, third.state) == ("ok", "ok")
    assert (second.host, second.check, second.state) == ("n1", rule, state)
    assert said in second.said and mend in second.mend, second


def test_two_lines_of_one_machine() -> None:
    found = answers()
    found["n2"] |= {"boot": "boot 1", "host": "n1"}
    assert [one.state for one in judgement.same_machine(found)] == ["ok", "ok", "fail"]


def test_without_a_gpu_a_wrong_own_name_is_red_and_a_chosen_interface_mends_it() -> None:
    found = answers(2, gpus=0)
    found["n1"]["own_name"] = "127.0.1.1"
    assert [one.state for one in judgement.own_names(found, {})] == ["ok", "fail"]
    assert [one.state for one in judgement.own_names(found, {"GLOO_SOCKET_IFNAME": "ib0"})] == ["ok", "ok"]
    del found["n1"]["interfaces"]["ib0"]
    (_, other) = judgement.own_names(found, {"GLOO_SOCKET_IFNAME": "ib0"})
    assert other.state == "fail" and "no such interface" in other.said


def test_without_any_gpu_slots_are_cpu_ranks_which_is_said() -> None:
    found = list(judgement.gpus(answers(2, gpus=0), HOSTS))
    assert {one.state for one in found} == {"warn"} and "slots=8 means 8 CPU ranks on 64 cores" in found[0].said


def test_more_gpus_than_slots_is_said() -> None:
    found = list(judgement.gpus(answers(2), {"n0": Host("n0", 8), "n1": Host("n1", 4)}))
    assert [one.state for one in found] == ["ok", "warn"] and "4 slots" in found[1].said


@pytest.mark.parametrize("doubt, state", [(0.1, "fail"), (9.0, "ok")])
def test_clocks_are_compared_with_the_others_and_no_further_than_can_be_known(doubt: float, state: str) -> None:
    """The machine that asks may be the one that is wrong: all are 100 s ahead of it."""
    found = list(judgement.clocks({"a": (100.0, 0.1), "b": (100.2, 0.1), "c": (107.0, doubt)}))
    assert [one.state for one in found] == ["ok", "ok", state]
    assert state == "ok" or "7 s ahead of the others" in found[2].said
