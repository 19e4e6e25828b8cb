"""The self-test on devices that do not compute: the rank that is at fault is named, and no other. Real ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sycoca_ds.engine.safety.self_test import SIDE, faults
from tests.worlds.processes.launching import finish, run_on_ranks, start_warm
from tests.worlds.trainings.hurting import hurt
from tests.worlds.trainings.training import SMALL

if TYPE_CHECKING:
    from sycoca_ds.engine.ranks.runtime import Runtime

Product, Reduce = torch.Tensor.__matmul__, torch.distributed.all_reduce


def bad_product(dtype: torch.dtype) -> Callable[..., Any]:
    """One element of a product in that type is off by its last bit."""

    def product(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        result = Product(own, other)
        if result.dtype == dtype:
            result[3, 5] = torch.nextafter(result[3, 5], torch.tensor(1e9, dtype=dtype))
        return result

    return product


def bad_receiver(tensor: torch.Tensor) -> None:
    """The sum is right on its way, and wrong in this rank's memory."""
    Reduce(tensor)
    tensor[7:9] += 1


def bad_giver(tensor: torch.Tensor) -> None:
    """What this rank gives is doubled, so nothing stays nothing."""
    tensor *= 2
    Reduce(tensor)


def bad_link(tensor: torch.Tensor) -> None:
    """Every sum that comes by is wrong for all."""
    tensor[0] += 1
    Reduce(tensor)


def bad_once() -> Callable[[torch.Tensor], None]:
    calls = []

    def reduce(tensor: torch.Tensor) -> None:
        calls.append(1)
        tensor[0] += len(calls) == 1
        Reduce(tensor)

    return reduce


NONZERO = int(torch.randint(-3, 4, (SIDE, SIDE), generator=torch.Generator().manual_seed(20))[0].count_nonzero())
"""Of the elements that a rank gives the others are 0, which no factor spoils."""
PRODUCT = f"1 of {SIDE * SIDE} elements of a {{}} matrix product are wrong"
CASES: dict[str, tuple[int, dict[str, Any], list[str]]] = {  # the rank at fault, what is wrong on it, what is said
    "healthy": (1, {}, []),
    "float32": (1, {"product": bad_product(torch.float32)}, [f"rank 1: {PRODUCT.format('float32')}"]),
    "bfloat16": (0, {"product": bad_product(torch.bfloat16)}, [f"rank 0: {PRODUCT.format('bfloat16')}"]),
    "receiver": (1, {"reduce": bad_receiver}, ["rank 1: 2 of 512 elements of a sum over ranks are wrong"]),
    "giver": (1, {"reduce": bad_giver}, [f"rank 1: {NONZERO} of 512 elements that it gives to a sum over ranks are wrong"]),
    "link": (0, {"reduce": bad_link}, ["1 of 512 elements of a sum are wrong on all ranks, wherever they come from"]),
    "once": (1, {"reduce": bad_once()}, ["1 of 512 elements of a sum are wrong on all ranks, and none when each rank gives alone"]),
    "healthy again": (0, {}, []),
}


def on_a_rank(runtime: Runtime, file: str) -> None:
    found = {}
    for name, (guilty, wrong, _) in CASES.items():
        if runtime.rank == guilty:
            torch.Tensor.__matmul__ = wrong.get("product", Product)
            torch.distributed.all_reduce = wrong.get("reduce", Reduce)
        found[name] = faults(runtime)
        torch.Tensor.__matmul__, torch.distributed.all_reduce = Product, Reduce
    Path(file).with_suffix(f".{runtime.rank}").write_text(json.dumps(found))


def test_the_rank_at_fault_is_named_and_no_other(tmp_path: Path) -> None:
    run_on_ranks(tmp_path, __name__, str(tmp_path / "found.json"), ranks=2)
    said = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1)]
    assert said[0] == said[1] == {name: expected for name, (_, _, expected) in CASES.items()}


@pytest.mark.slow
def test_a_run_whose_device_begins_to_miscalculate_ends_and_names_it(data_set: Path, tmp_path: Path) -> None:
    """Rank 1's from its fifth step on; the tests are before steps 1, 4, 7. Nothing else of the run knows that operator."""
    out = tmp_path / "run"
    wrong = (
        "n == 5 and rank == 1 and setattr(torch.Tensor, '__matmul__', lambda a, b, plain=torch.Tensor.__matmul__: "
        "plain(a, b) + (a.shape == b.shape == (512, 512) and a.is_floating_point()))"
    )
    options = [*SMALL, "--data.train", str(data_set), "--run.out", str(out), "--optim.steps", "9", "--guard.self-test-every", "3"]
    options += ["--run.ds-config", "ds_configs/zero1.json"]
    code, output = finish(start_warm(options, ranks=2, script=hurt(tmp_path, wrong)))
    assert code == 1, output[-3000:]
    product = r"rank 1: 26\d{4} of 262144 elements of a \w+ matrix product are wrong"  # in bf16 some take no notice of one more
    said = re.search(rf"FaultyDevice: step 7: {product}; {product}: take that machine out", output)
    assert said and "rank 0: " not in output, output[-3000:]
    for rank in (0, 1):
        failure = json.loads((out / f"failures/rank_{rank:05d}.json").read_text())
        assert failure["kind"] == "device" and said[0].endswith(failure["message"].removeprefix("FaultyDevice: "))
    status = json.loads((out / "run_status.json").read_text())
    assert status["status"] == "failed" and status["step"] == 6
