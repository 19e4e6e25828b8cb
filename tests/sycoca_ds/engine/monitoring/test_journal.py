"""What a run writes: the same record as a line of metrics.jsonl and as points in TensorBoard's curves."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sycoca_ds.engine.metrics import TAGS, Metrics


def test_every_key_has_its_curve_and_the_losses_come_first(tmp_path: Path) -> None:
    """TensorBoard sorts groups by name and opens the first two."""
    record = {name: float(number) for number, name in enumerate([*TAGS, "epoch_of_source_1", "epoch_of_source_2"])}
    metrics = Metrics(tmp_path, 0, enabled=True)
    metrics.scalars(1, record)
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, **record}
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert sorted({tag.split("/")[0] for tag in tags})[:2] == ["loss", "loss_validation"]
    assert sorted(tag for tag in tags if tag.startswith("loss")) == [
        *("loss/ic", "loss/itc", "loss/mim", "loss/total"),
        *("loss_validation/ic", "loss_validation/itc", "loss_validation/mim", "loss_validation/total"),
    ]
    assert len(tags) == len(record) and all("/" in tag for tag in tags), "no curve is a group of its own"
    values = {tag: board.Scalars(tag)[0].value for tag in tags}
    assert values["loss_validation/itc"] == record["validation/itc"] and values["samples/seen"] == record["samples"]
    assert values["samples/epoch_of_source_2"] == record["epoch_of_source_2"]
