"""Four commands: which of the paper's sets are there (`python -m sycoca_ds.eval datasets --data-root DIR`), checkpoints side by
side (`compare A B`), numbers beside the paper's (`paper --out DIR`), and the file behind
`--labels` (`labels --data DIR --out FILE`)."""

from __future__ import annotations

import sys

from data_pipeline.command_line import run_chosen
from data_pipeline.errors import run_command

PROGRAM = "python -m sycoca_ds.eval"
COMMANDS = {
    "datasets": ("sycoca_ds.eval.commands", "DatasetsCommand", "which evaluation sets are there, and whole?"),
    "compare": ("sycoca_ds.eval.commands", "CompareCommand", "checkpoints side by side, tested"),
    "labels": ("sycoca_ds.eval.labelling", "LabelsCommand", "which class each picture shows, from a table or from folders"),
    "paper": ("sycoca_ds.eval.commands", "PaperCommand", "our numbers in the paper's tables"),
}


def main() -> int:
    return run_chosen(sys.argv[1:], PROGRAM, "What goes before and after an evaluation.", COMMANDS)


if __name__ == "__main__":
    sys.exit(run_command(main))
