"""`evaluate.py` behind its entry: where the evaluation of eval/ meets the engine's checkpoints and ranks.

In: a command line. Out: what eval/ leaves, for a checkpoint or for each of a run.
"""
