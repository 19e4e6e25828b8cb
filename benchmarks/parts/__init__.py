"""One file a benchmark: `measure(options, peers)` yields the rows of the table as they are there."""

PARTS = {
    "training": "training",
    "engine": "engine",
    "input": "data_input",
    "generation": "generation",
    "retrieval": "retrieval",
    "checkpoint": "checkpoint",
    "data": "data_build",
}
"""Name on the command line -> module."""
