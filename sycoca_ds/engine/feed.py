"""The stream of micro-batches of one rank, with shards behind a URL fetched before they are needed."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from sycoca_ds.config import TrainConfig
from sycoca_ds.data.batch import Batch
from sycoca_ds.data.loader import PlannedBatches, TrainSet, train_loader
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.question_sources import QuestionSet
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.storage import Prefetcher
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.batches import BatchPlan
from sycoca_ds.engine.preparation import augmentation
from sycoca_ds.engine.ranks.runtime import Runtime


def start_feed(
    config: TrainConfig,
    runtime: Runtime,
    sources: Sources,
    plan: Plan,
    tokenizer: Tokenizer,
    batches: BatchPlan,
    *,
    first_step: int,
    last_step: int,
) -> Iterator[Batch]:
    """Starts the loader processes and yields the plan's micro-batches from `first_step` to `last_step`."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    training_set = (QuestionSet if config.task == "vqa" else TrainSet)(
        sources,
        plan,
        tokenizer,
        augmentation=augmentation(config),
        context_length=config.model.text.context_length,
        keep_open=max(1, min(plan.shards_at_once(plan.lanes // runtime.world_size), files)),
    )
    on_step = None
    if any(sources.urls):
        prefetcher, steps = Prefetcher(sources.cache), max(1, plan.window // plan.per_step)  # of a window

        def on_step(step: int) -> None:
            if step % -(-steps // 8) == 0 or step == first_step:
                shards = plan.shards_ahead(step, min(steps, last_step - step), runtime.world_size, runtime.rank)
                prefetcher.want([file for shard in shards for file in sources.remote(shard) or ()])

    planned = PlannedBatches(
        plan, first_step, last_step, runtime.world_size, runtime.rank, batches.accumulation_steps, on_step=on_step
    )
    return train_loader(training_set, planned, config.data.workers, pin=runtime.device.type == "cuda")
