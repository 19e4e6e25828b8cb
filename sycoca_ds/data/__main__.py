"""`python -m sycoca_ds.data inspect DIR...`: what a run would be fed."""

from __future__ import annotations

import sys

from data_pipeline.errors import UserError, run_command


def main() -> int:
    if sys.argv[1:2] != ["inspect"]:
        raise UserError("expected: python -m sycoca_ds.data inspect DIR... (--help after it lists its options)")
    from sycoca_ds.data.inspection import report

    return report(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(run_command(main))
