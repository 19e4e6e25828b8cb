"""Evaluates a saved checkpoint: retrieval, classification, captioning, reconstruction, masks, compositions, linear probes. Leaves
JSON, samples and a page.

    python sycoca_ds/evaluate.py --checkpoint runs/demo/run --data runs/demo/data/test \\
        --labels runs/demo/world/test_labels.json --out runs/demo/eval
    python sycoca_ds/evaluate.py --checkpoint runs/base --data-root /data --sets flickr30k imagenet1k --out runs/base/eval

`--require 'retrieval.i2t_r1>=40' 'captioning.cider>=1'` ends with status 1, and the numbers, if one falls short.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0] or os.getcwd()).resolve() == ROOT / "sycoca_ds":
    # launched by path: this folder would shadow installed modules (`data`, `model`), and `sycoca_ds` would not be found; nor may
    # the folder of all packages go before Python's own
    sys.path[:1] = [] if ROOT.name in ("site-packages", "dist-packages") else [str(ROOT)]

from data_pipeline.command_line import parse_command  # noqa: E402
from data_pipeline.errors import leaves  # noqa: E402
from sycoca_ds.evaluation import KEPT  # noqa: E402
from sycoca_ds.evaluation.command import evaluate  # noqa: E402
from sycoca_ds.evaluation.options import EvaluateConfig  # noqa: E402
from sycoca_ds.evaluation.ranks import run_on_every_rank  # noqa: E402


def main() -> int:
    leaves(KEPT)
    program, words = "sycoca_ds/evaluate.py", [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    return run_on_every_rank(lambda: evaluate(parse_command(EvaluateConfig, words, program, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
