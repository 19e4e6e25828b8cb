"""The parts behind `python -m sycoca_ds.ablations`."""
