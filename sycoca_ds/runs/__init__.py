"""What runs there are, how they stand and what they reached: `python -m sycoca_ds.runs [DIR]` (docs/monitoring.md).

In: run folders, as a training and its evaluations leave them. Out: a table, or JSON. Nothing is written, and torch is not needed.

    reading (one run folder -> facts) -> command (which runs, in which order, how they are shown)
"""

LOSSES = ("loss", "itc", "ic", "mim", "vqa")
"""Names of a training's losses in metrics.jsonl."""
