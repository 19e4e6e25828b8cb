"""Which weights ZeRO-3 lets go after a module: the sets of DeepSpeed's own search, call by call."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.engine.zero3 import release
from tests.worlds.processes.launching import run_on_ranks
from tests.worlds.trainings.training import SMALL, train_here, with_validation

DISTANCES = (0, 3_000, 100_000, 3_000_000_000)
"""Numbers between two uses up to which a weight stays: none, some, most, all of the small model's."""


def on_a_rank(runtime: Runtime, folder: str, data: str) -> None:
    """Every answer beside that of DeepSpeed's method without its memory, which is asked as the first of the two."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    name, counts = f"{release.OWN}params_to_release", {}
    own = inspect.getclosurevars(getattr(Coordinator, name)).nonlocals["func"].__wrapped__
    release.release_in_one_pass()
    ours = getattr(Coordinator, name)
    for distance in DISTANCES:
        counts[distance] = [0, 0, 0, 0]  # calls, equal answers, weights that stay, weights that are let go

        def both(coordinator, module, step, count=counts[distance]):
            first = (module, step) not in (coordinator.uses.found if hasattr(coordinator, "uses") else {})
            expected = own(coordinator, module, step) if first else None  # later the set is one that DeepSpeed has added to
            found = ours(coordinator, module, step)
            if first:
                count[0] += 1
                count[1] += found == expected
                count[2] += sum(1 for p in module.parameters(recurse=False) if not p.ds_persist) - len(found)
                count[3] += len(found)
            return found

        both.replaces = own
        setattr(Coordinator, name, both)
        policy = json.loads(Path("ds_configs/zero3.json").read_text())
        policy["zero_optimization"] |= {"stage3_max_reuse_distance": distance, "stage3_param_persistence_threshold": 100}
        policy["zero_optimization"]["stage3_prefetch_bucket_size"] = 0  # what it has passed over stays, too: here all
        file = Path(folder, f"{distance}.json")
        file.write_text(json.dumps(policy))
        words = [*SMALL, "--data.train", data, "--run.out", f"{folder}/{distance}", "--run.ds-config", str(file)]
        train_here(runtime, [*words, *with_validation(Path(data)), "--run.picture-every", "2"])
    if runtime.leads:
        Path(folder, "counts.json").write_text(json.dumps(counts))


@pytest.mark.slow
def test_what_is_let_go_is_what_deepspeed_finds(data_set: Path, tmp_path: Path) -> None:
    """With a validation in between, whose other order of modules makes DeepSpeed note its trace anew."""
    run_on_ranks(tmp_path, __name__, str(tmp_path), str(data_set), ranks=1)
    counts = {int(distance): count for distance, count in json.loads((tmp_path / "counts.json").read_text()).items()}
    for distance, (calls, same, *_) in counts.items():
        assert calls > 100 and same == calls, distance
    kept, left = ([counts[distance][place] for distance in DISTANCES] for place in (2, 3))
    assert kept == sorted(kept) and left == sorted(left, reverse=True) and kept[0] < kept[1] < kept[-1], counts
