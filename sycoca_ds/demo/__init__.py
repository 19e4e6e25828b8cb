"""The whole way, small: `python -m sycoca_ds.demo`."""
