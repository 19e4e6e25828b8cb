"""`python -m sycoca_ds.eval datasets --data-root DIR`: which of the paper's sets are there."""

from __future__ import annotations

import sys

from data_pipeline.command_line import no_such_command, parse_command
from data_pipeline.errors import UserError, run_command

PROGRAM = "python -m sycoca_ds.eval"


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        raise UserError(f"expected: {PROGRAM} datasets --data-root DIR (--help after it lists its options)")
    if words[0] != "datasets":
        raise no_such_command(words, ["datasets"], f"{PROGRAM} datasets")
    from sycoca_ds.eval.datasets.command import DatasetsCommand

    return parse_command(DatasetsCommand, words[1:], f"{PROGRAM} datasets").run()


if __name__ == "__main__":
    sys.exit(run_command(main))
