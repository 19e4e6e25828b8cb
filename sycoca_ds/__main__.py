"""`python -m sycoca_ds COMMAND`: what `sycoca COMMAND` is."""

import sys

from sycoca_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
