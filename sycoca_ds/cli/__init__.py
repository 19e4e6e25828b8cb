"""The command `sycoca`: words in, the function of another room that does them out.

table: every command's name, function, line and example; `dispatch` finds it and starts it; `train` puts DeepSpeed's launcher before
the training, and `deepspeed_runner` waits in it; `completion` writes the names and options for shells. Nothing here imports a
command before it is the one that runs.
"""

from __future__ import annotations


def main() -> int:
    """`sycoca`, from its first import on under the eyes of what answers a Ctrl-C."""
    from data_pipeline.errors import run_module

    return run_module("sycoca_ds.cli.dispatch")
