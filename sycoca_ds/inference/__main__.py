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


def main() -> int:
    return run_chosen(sys.argv[1:], PROGRAM, "A trained model, asked about pictures.", COMMANDS)


if __name__ == "__main__":
    sys.exit(run_command(main))
