"""The paper's ablations, Tables 5 to 7: trains every row with every seed, evaluates it, writes our tables beside the paper's.

    python -m sycoca_ds.ablations --table 5 --seeds 0 1 2 --out runs/ablations --launch "deepspeed --num_accelerators 2" \\
        --evaluate world=DATA_DIR,LABELS.json flickr30k=DATA_DIR -- --preset tiny --data.train DIR

What stands after `--` goes to every training (options of train.py). OUT/ablations.md holds the tables, OUT/ablations.json every
number with what made it; both are written anew after every step. Killed at any moment, the same command goes on where it stopped.
"""

from __future__ import annotations

import sys

from data_pipeline.errors import leaves, run_command
from sycoca_ds.ablations import KEPT

PROGRAM = "python -m sycoca_ds.ablations"


def main(arguments: list[str] | None = None) -> int:
    from data_pipeline.command_line import parse_command
    from sycoca_ds.ablations.options import AblationOptions

    leaves(KEPT)
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parse_command(AblationOptions, arguments[:cut], PROGRAM, description=__doc__)
    from sycoca_ds.ablations.command import ablate  # with torch, which asking for help need not wait for

    return ablate(options, arguments[cut + 1 :])


if __name__ == "__main__":
    sys.exit(run_command(main))
