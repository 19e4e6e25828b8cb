"""`python -m sycoca_ds.supervise -- COMMAND`: keeps a training going on machines that fail. docs/failures.md has what it does.

In: the command, and what its ranks leave in the run folder (status, heartbeats, failures, stacks). Out: verdict.json, ledger.jsonl
and supervise/ there, and the command started again where that is of use. Needs neither torch nor a GPU.
"""
