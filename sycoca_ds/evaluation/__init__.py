"""`evaluate.py` behind its entry: where the evaluation of eval/ meets the engine's checkpoints and ranks.

In: a command line. Out: what eval/ leaves, for a checkpoint or for each of a run.
"""

KEPT = "finished tasks, and the cache of what the model said"
"""What Ctrl-C leaves of the command."""
