"""Speed beside the alternatives, measured on the spot: `make bench`, or `python -m benchmarks NAME`.

In: a machine, and where they are installed open_clip 3.3 (`make peer`) and a checkout of its main branch. Out: a table of ours, the
peer's, their ratio and the distance to the machine's limit; a JSON file a run in runs/bench; with `--note` a dated note.

    frame.py         turns, their spread, which of them other work disturbed; tables, JSON, what has become slower
    limits.py        what the machine can do: matrix products at the shapes used, plain writes
    peers.py         talks with peer_process.py, which runs open_clip under its own environment
    parts/           one file a benchmark
    investigations/  scripts behind single notes

The scripts beside these (engine_overhead.py, loader_speed.py, ...) measure one thing in more ways than the table holds; the parts
use their functions.
"""
