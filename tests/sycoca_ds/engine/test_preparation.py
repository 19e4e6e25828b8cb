"""What a start says of the run's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sycoca_ds.config import with_vocabulary
from sycoca_ds.data.plan import Plan
from sycoca_ds.engine.batches import plan_batches
from sycoca_ds.engine.preparation import arithmetic
from sycoca_ds.engine.schedule import learning_rate
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS


@pytest.mark.parametrize("warm, share", [(299, None), (300, "100.0%"), (5000, "6.0%")])
def test_a_warm_up_that_the_run_does_not_outlast_is_told(warm: int, share: str | None) -> None:
    config = PRESETS["tiny"]
    config = replace(
        config,
        model=with_vocabulary(config.model, 64),
        optim=replace(config.optim, warmup_steps=warm),
        run=replace(config.run, precision="fp32"),
    )
    plan = Plan([[1000]], global_batch_size=64, lanes=16, window=64, seed=0)
    text = arithmetic(config, plan_batches(config, 1), plan, 300, SyCoCa(config.model, config.loss, seed=0))
    last = learning_rate(299, peak=1.0, warmup_steps=warm, steps=300)
    assert ("warm-up" in text) == (share is not None)
    assert share is None or f"warm-up: {warm} steps, the run has 300: the learning rate ends at {share} of optim.lr" in text
    assert share is None or f"{last:.1%}" == share
