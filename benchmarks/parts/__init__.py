"""One file a benchmark: `measure(options, peers)` yields the rows of the table as they are there."""
