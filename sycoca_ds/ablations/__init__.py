"""The paper's Tables 5 to 7 as runs: `python -m sycoca_ds.ablations`.

tables (rows, and the paper's numbers) -> runs (trainings and evaluations) -> command, which launches them -> record, report
"""

KEPT = "all finished stages"
"""What Ctrl-C leaves of the command."""
