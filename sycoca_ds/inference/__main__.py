"""`python -m sycoca_ds.inference caption IMG...` and `search FOLDER TEXT`."""

from __future__ import annotations

import sys
from typing import Annotated

from data_pipeline.command_line import no_such_command, parse_command
from data_pipeline.errors import UserError, run_command

PROGRAM = "python -m sycoca_ds.inference"


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        raise UserError(
            f"expected: {PROGRAM} caption IMG... --checkpoint RUN, or {PROGRAM} search FOLDER TEXT --checkpoint RUN (--help after "
            "it lists its options)"
        )
    if words[0] == "caption":
        from sycoca_ds.inference.caption import CaptionCommand as Command
    elif words[0] == "search":
        from sycoca_ds.inference.search import SearchCommand as Command
    else:
        raise no_such_command(words, ["caption", "search"], f"{PROGRAM} caption")
    import tyro

    return parse_command(Annotated[Command, tyro.conf.OmitArgPrefixes], words[1:], f"{PROGRAM} {words[0]}").run()


if __name__ == "__main__":
    sys.exit(run_command(main))
