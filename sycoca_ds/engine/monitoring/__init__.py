"""What a run says of itself while it trains. docs/monitoring.md tells what every number means.

In: the loop's calls, on every rank, at the same steps. Out: metrics.jsonl, tensorboard/, best.json and profile/ in the run folder,
written by rank 0, and lines on its console.

    loop ── monitor ──┬── meters        losses, time, FLOPs and memory between two reports
                      ├── gradients     the gradient's norm, part by part
                      ├── validation ───┬── eval/       retrieval, and whether the masks follow the caption
                      │                 └── pictures    fixed samples, drawn
                      ├── best          which checkpoint is the best one
                      └── journal ───────── curves      names of numbers, layout of the board
    loop ── profiling

A new number: a key in `curves.TAGS`, a value in a record, a line in docs/monitoring.md.
"""
