import sys

from data_pipeline.errors import run_command
from sycoca_ds.capacity.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
