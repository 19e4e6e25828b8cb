"""All tasks by name, in the order in which they are run."""

from __future__ import annotations

from sycoca_ds.eval.task import Task
from sycoca_ds.eval.tasks import (
    alignment,
    association,
    captioning,
    classification,
    compositionality,
    linear_probe,
    masking,
    reconstruction,
    retrieval,
    vqa,
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        retrieval.TASK,
        classification.TASK,
        captioning.TASK,
        reconstruction.TASK,
        masking.TASK,
        alignment.TASK,
        compositionality.TASK,
        linear_probe.TASK,
        vqa.TASK,
        association.TASK,
    )
}
METRICS: dict[str, tuple[str, ...]] = {name: tuple(task.numbers) for name, task in TASKS.items()}
"""{task: names of its numbers}."""
