"""Everything that needs a GPU, in one command: `make gpu-check`, or

    python benchmarks/gpu_check --out runs/gpu_check [--data DATA] [--only arithmetic training speed]

arithmetic   losses, gradients, masks, captions and resizing on the GPU against the CPU, float32 and bf16; waits for the device
training     short runs of train.py at every ZeRO stage, each stopped and resumed, against a run on the CPU; on two GPUs also
             two ranks
speed        the presets on one GPU: samples/s, MFU, memory beside the planner's, a save, its verification and resume

Under ten minutes on one H100. DATA is a data set folder with its tokenizer.json; without it one of drawn pictures is written. Every
check is a line of the table at the end, `check.json` has all numbers; status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from check import Checks, describe
from sections import arithmetic, speed, training

SECTIONS = {"arithmetic": arithmetic.run, "training": training.run, "speed": speed.run}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--runs", nargs="+", metavar="NAME", help="of the speed section, these alone")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no GPU here (torch.cuda.is_available() is False): run this on a machine with one", file=sys.stderr)
        return 2
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    checks, began = Checks(options.out / "check.json"), time.monotonic()
    checks.note("machine", describe())
    for name in options.only:
        start = time.monotonic()
        checks.begin(name)
        try:
            SECTIONS[name](checks, options)
        except Exception as error:  # the other sections still say something
            checks.add("ran to its end", False, f"{type(error).__name__}: {error}")
        checks.note(f"{name} seconds", round(time.monotonic() - start, 1))
    checks.note("seconds", round(time.monotonic() - began, 1))
    print(checks.table())
    print(json.dumps(checks.notes.get("machine")))
    return int(checks.failed)


if __name__ == "__main__":
    sys.exit(main())
