"""Checkpoints side by side over the same pictures: `python -m sycoca_ds.eval compare A B [C ...]`.

In: folders that evaluate.py has left, each with results.json and each/, or sets.json and a folder a set.
Out: a table on the terminal, comparison.json, comparison.md.

    command ── folders     what is there, and whether it is of the same data
       │    └─ dropped     which numbers cannot be compared, and why
      rows ─── numbers     how each number is made from what pictures add to it
            └─ testing     paired tests, intervals, Holm, the smallest difference that could have been shown
"""

PERMUTATIONS = 10_000
"""Exchanges of a permutation test, where none are asked for."""
