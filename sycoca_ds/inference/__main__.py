"""`python -m sycoca_ds.inference caption IMG...` and `search FOLDER TEXT`."""

from __future__ import annotations

import sys

from data_pipeline.command_line import run_chosen
from data_pipeline.errors import run_command

PROGRAM = "python -m sycoca_ds.inference"
COMMANDS = {
    "caption": ("sycoca_ds.inference.caption", "CaptionCommand", "captions of photographs"),
    "search": ("sycoca_ds.inference.search", "SearchCommand", "a folder's pictures that fit a text best"),
}
KEPT = {
    "caption": "the captions that are printed",
    "search": "the vectors of the pictures that were looked at, in their cache",
}
"""What Ctrl-C leaves of a command."""


def main() -> int:
    return run_chosen(sys.argv[1:], PROGRAM, "A trained model, asked about pictures.", COMMANDS, KEPT)


if __name__ == "__main__":
    sys.exit(run_command(main))
