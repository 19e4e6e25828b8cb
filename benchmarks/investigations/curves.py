"""Loss curves of runs side by side: `python benchmarks/investigations/curves.py NAME=RUN NAME=RUN... [--out curves.png]`

Reads metrics.jsonl of each run folder; prints every loss at a few steps, the largest relative difference from the first run over
the last half, and whether every value is finite.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

LOSSES = ("loss", "itc", "ic", "mim")


def read(run: Path) -> dict[int, dict[str, float]]:
    """Step -> record of training."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in records if "loss" in record}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--out", type=Path, help="a PNG of the curves")
    parser.add_argument("--points", type=int, default=8)
    options = parser.parse_args()
    curves = {name: read(Path(run)) for name, run in (item.split("=", 1) for item in options.runs)}
    first = next(iter(curves))
    names = [name for name in LOSSES if name in next(iter(curves[first].values()))]
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    shown = [steps[round(n * (len(steps) - 1) / (options.points - 1))] for n in range(options.points)]
    print("| step | " + " | ".join(f"{loss}, {name}" for loss in names for name in curves) + " |")
    print("|---" * (1 + len(names) * len(curves)) + "|")
    for step in shown:
        cells = [f"{curve[step][loss]:.4f}" for loss in names for curve in curves.values()]
        print(f"| {step} | " + " | ".join(cells) + " |")
    for name, curve in curves.items():
        values = [record[key] for record in curve.values() for key in (*names, "grad_norm") if key in record]
        gaps = []
        for loss in names:
            half = [step for step in steps if step > steps[-1] / 2]
            gap = max(abs(curve[s][loss] / curves[first][s][loss] - 1) for s in half)
            mean = sum(curve[s][loss] for s in half) / sum(curves[first][s][loss] for s in half) - 1
            gaps.append(f"{loss} at most {100 * gap:.1f} %, mean {100 * mean:+.1f} %")
        print(
            f"\n{name}: {len(curve)} records to step {max(curve)}, all finite: {all(map(math.isfinite, values))}, skipped steps: "
            f"{max(record['skipped_steps'] for record in curve.values())}; off {first} over the last half: " + "; ".join(gaps)
        )
    if options.out:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, len(names), figsize=(3.6 * len(names), 3), layout="constrained")
        for axis, loss in zip(axes, names, strict=True):
            for name, curve in curves.items():
                axis.plot(list(curve), [record[loss] for record in curve.values()], label=name, linewidth=1)
            axis.set(title=loss, xlabel="step")
            axis.grid(alpha=0.3)
        axes[0].legend()
        figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
