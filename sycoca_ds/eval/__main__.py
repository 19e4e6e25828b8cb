"""Four commands: which of the paper's sets are there (`python -m sycoca_ds.eval datasets --data-root DIR`), checkpoints side by
side (`compare A B`), numbers beside the paper's (`paper --out DIR`), and the file behind
`--labels` (`labels --data DIR --out FILE`)."""

from __future__ import annotations

import sys

from data_pipeline.command_line import no_such_command, parse_command
from data_pipeline.errors import UserError, run_command

PROGRAM = "python -m sycoca_ds.eval"


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        raise UserError(
            f"expected: {PROGRAM} datasets --data-root DIR, {PROGRAM} compare A B, {PROGRAM} paper --out DIR, or {PROGRAM} labels "
            "--data DIR --out FILE (--help after it lists its options)"
        )
    if words[0] == "datasets":
        from sycoca_ds.eval.commands import DatasetsCommand as Command
    elif words[0] == "compare":
        from sycoca_ds.eval.commands import CompareCommand as Command
    elif words[0] == "paper":
        from sycoca_ds.eval.commands import PaperCommand as Command
    elif words[0] == "labels":
        from sycoca_ds.eval.labelling import LabelsCommand as Command
    else:
        raise no_such_command(words, ["datasets", "compare", "paper", "labels"], f"{PROGRAM} datasets")
    return parse_command(Command, words[1:], f"{PROGRAM} {words[0]}").run()


if __name__ == "__main__":
    sys.exit(run_command(main))
