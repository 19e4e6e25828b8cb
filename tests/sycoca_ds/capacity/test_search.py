"""What must hold between plans: more of one thing never costs less of another, and the best is the best of all."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from sycoca_ds.capacity.communication import Traffic
from sycoca_ds.capacity.machines import GPUS, Assumptions, Machine
from sycoca_ds.capacity.search import FULL, NONE, Configuration, Search, lanes_for
from sycoca_ds.capacity.speed import collective_seconds
from sycoca_ds.config import TrainConfig, with_vocabulary
from sycoca_ds.engine.policy import find_policy
from sycoca_ds.presets import PRESETS

ONE, TWO, THREE, OFFLOADED = (f"ds_configs/{name}.json" for name in ("zero1", "zero2", "zero3", "zero3_offload"))
POLICIES = {name: json.loads(find_policy(name).read_text()) for name in (ONE, TWO, THREE, OFFLOADED)}
RANKS = [1 << n for n in range(11)]


def settled(preset: str) -> TrainConfig:
    return replace(PRESETS[preset], model=with_vocabulary(PRESETS[preset].model, 49152))


def search(preset: str = "930m", gpus: int = 16, gpu: str = "a100-80g", fabric: float = 800, **optim) -> Search:
    config = settled(preset)
    config = lanes_for(replace(config, optim=replace(config.optim, **optim)), gpus)
    each = min(gpus, 8)
    return Search(config, Machine(GPUS[gpu], gpu, gpus // each, each, fabric, Assumptions()), POLICIES)


def every(preset: str, gpus: int, steps: int = 1) -> list[Configuration]:
    found = search(preset, gpus)
    return [found.configuration(name, choice, steps) for name, choice in itertools.product(POLICIES, (NONE, FULL))]


@pytest.mark.parametrize("preset", ["base", "930m"])
def test_more_gpus_never_need_more_memory_each(preset: str) -> None:
    """In one global batch, from 1 to 1,024."""
    needed = [[one.peak.total for one in every(preset, gpus)] for gpus in RANKS]
    for few, many in itertools.pairwise(needed):
        assert all(b <= a for a, b in zip(few, many, strict=True))
    assert all(b < a for a, b in zip(needed[0], needed[-1], strict=True))


@pytest.mark.parametrize("gpus", [1, 16])
def test_more_samples_or_less_recomputation_never_need_less(gpus: int) -> None:
    for name in POLICIES:
        plain, full = (search(gpus=gpus).configuration(name, choice, 1) for choice in (NONE, FULL))
        sizes = [1, 2, 3, 8, 21, 64, 128]
        for one in (plain, full):
            needed = [one.with_micro_batch(size).peak.total for size in sizes]
            assert needed == sorted(needed) and needed[0] < needed[-1]
        assert all(full.with_micro_batch(size).peak.total <= plain.with_micro_batch(size).peak.total for size in sizes)
        assert full.speed.seconds > plain.speed.seconds and full.speed.queueing > plain.speed.queueing


def test_higher_stages_hold_less() -> None:
    one, two, three, offloaded = (search().configuration(name, FULL, 1).step.engine.at_rest() for name in POLICIES)
    assert two.gradients < one.gradients and two.weights == one.weights and two.optimizer == one.optimizer
    assert three.weights < two.weights and offloaded.optimizer == 0 < offloaded.host


@pytest.mark.parametrize("gpu", ["rtx4090-24g", "a100-40g", "h200-141g"])
def test_the_largest_micro_batch_fits_and_the_next_does_not(gpu: str) -> None:
    for name, choice in itertools.product(POLICIES, (NONE, FULL)):
        one = search(gpus=8, gpu=gpu).configuration(name, choice, 1)
        most = one.largest_micro_batch()
        assert most == 0 or one.with_micro_batch(most).fits
        assert not one.with_micro_batch(most + 1).fits


@pytest.mark.parametrize(
    "gpus, gpu", [pytest.param(8, "rtx4090-24g", marks=pytest.mark.full), (16, "a100-80g"), (1024, "h100-80g")]
)
def test_the_fastest_is_the_fastest_of_all_that_fit(gpus: int, gpu: str) -> None:
    found = search(gpus=gpus, gpu=gpu)
    best, own = found.fastest(), 2048 // gpus
    assert best is not None and best.fits
    for name, choice, steps in itertools.product(POLICIES, found.choices(), (k for k in range(1, own + 1) if own % k == 0)):
        other = found.configuration(name, choice, steps)
        assert other.speed.samples_per_second <= best.speed.samples_per_second * 1.003 or not other.fits
    asked = found.asked()
    assert not asked.fits or best.speed.samples_per_second >= asked.speed.samples_per_second


def test_nothing_fits_where_nothing_fits() -> None:
    found = search(gpus=1)
    small = replace(found, machine=replace(found.machine, gpu=replace(found.machine.gpu, memory_gib=3.0)))
    assert small.fastest() is None


def test_accumulation_costs_the_encoders_once_more_and_saves_memory() -> None:
    whole, halves = (search().configuration(TWO, NONE, steps) for steps in (1, 2))
    assert halves.speed.hardware_flops > whole.speed.hardware_flops and halves.speed.model_flops == whole.speed.model_flops
    assert halves.peak.total < whole.peak.total
    assert halves.batches.global_batch_size == whole.batches.global_batch_size


def test_a_faster_fabric_is_never_slower_and_a_slow_one_shows() -> None:
    seconds = [search(fabric=gbps).configuration(THREE, FULL, 1).speed.seconds for gbps in (10, 100, 400, 1600)]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 1.4 * seconds[-1]


def test_seconds_of_a_collective_by_hand() -> None:
    """2 machines of 8: 1.6 GB gathered. Each machine receives 0.8 GB at 80 % of 100 GB/s; within it each GPU 1.5 GB at 240 GB/s."""
    machine = Machine(GPUS["a100-80g"], "a100-80g", 2, 8, 800, Assumptions(launch_us=0))
    gather = Traffic("weights", "all_gather", 1_600_000_000, 1, True)
    assert collective_seconds(gather, machine) == pytest.approx(0.8 / 80)
    assert collective_seconds(replace(gather, operation="all_reduce"), machine) == pytest.approx(2 * 0.8 / 80)
    alone = replace(machine, nodes=1)
    assert collective_seconds(gather, alone) == pytest.approx(1.6 * 7 / 8 / 240)


def test_days_of_the_readme() -> None:
    """README: 154 million samples of 1,899 GFLOP at 40 % of 312 TFLOP/s are 650 GPU hours, 41 on 16."""
    one = search().configuration(THREE, FULL, 1)
    assert one.speed.hardware_flops == pytest.approx(1899e9, rel=1e-3)
    assert 154e6 / one.speed.samples * one.speed.compute * 16 / 3600 == pytest.approx(651, rel=0.01)
