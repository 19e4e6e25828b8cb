"""`python -m sycoca_ds.capacity`: what a run needs and what it costs, by arithmetic, before a GPU is taken.

In: a preset or a configuration, a hostfile, a kind of GPU. Out: memory a GPU by part, seconds a step, days, energy, the interval
between saves, and the fastest configuration that fits. Nothing here imports torch.

`parameters` (shapes of the weights) -> `pieces` (the forward pass, piece by piece, and what each keeps) -> `states` (what a ZeRO
stage holds) -> `memory` (a step's highest moment); `communication`, `speed`, `saves` -> `search` -> `report`.
"""
