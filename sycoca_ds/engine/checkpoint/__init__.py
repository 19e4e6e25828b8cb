"""Checkpoints: `saving` (of `contents`, by `snapshot`, to the `writer`) and sealing, `restoring` a run, opening `weights` for
evaluation and export.

Beside them `resharding` (another number of ranks), `exported` (weights in folders of their own), `initial_weights` (a run's start
from either).
"""
