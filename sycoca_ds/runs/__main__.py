"""`python -m sycoca_ds.runs`; what it does is in command.py."""

import sys

from data_pipeline.errors import run_module

if __name__ == "__main__":
    sys.exit(run_module("sycoca_ds.runs.command"))
