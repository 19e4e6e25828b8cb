import sys

from data_pipeline.errors import run_module

if __name__ == "__main__":
    sys.exit(run_module("sycoca_ds.explore.command"))
