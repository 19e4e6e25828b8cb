"""`python -m sycoca_ds.data inspect DIR...`: what a run would be fed."""

from __future__ import annotations

import sys

from data_pipeline.command_line import no_such_command
from data_pipeline.errors import UserError, run_command

PROGRAM = "python -m sycoca_ds.data"


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        raise UserError(f"expected: {PROGRAM} inspect DIR... (--help after it lists its options)")
    if words[0] != "inspect":
        raise no_such_command(words, ["inspect"], f"{PROGRAM} inspect")
    from sycoca_ds.data.command import report

    return report(words[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
