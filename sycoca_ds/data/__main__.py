"""`python -m sycoca_ds.data inspect DIR...`: what a run would be fed."""

from __future__ import annotations

import sys

from data_pipeline.command_line import chosen
from data_pipeline.errors import run_command

PROGRAM = "python -m sycoca_ds.data"
COMMANDS = {"inspect": "counts, order, pictures and speed of what a run would be fed"}


def main() -> int:
    words = sys.argv[1:]
    chosen(words, PROGRAM, "What a run reads, looked at before it is started.", COMMANDS)
    from sycoca_ds.data.command import report

    return report(words[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
