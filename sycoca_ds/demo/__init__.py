"""The whole way, small: `python -m sycoca_ds.demo`."""

KEPT = "all finished stages"
"""What Ctrl-C leaves of the command."""
