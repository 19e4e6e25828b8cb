"""Every masking score on the same trained models: which of them find what the caption names, and from which step on.

    python benchmarks/investigations/masking_scores.py --out runs/scores \\
        --data runs/hard/test --regions runs/hard/world/test_regions.json \\
        --models "random masks=runs/masks/masking.random/seed_*" "late interaction=runs/masks/masking.random_late/seed_*"

Measures each checkpoint of each run (`--run.keep-every` keeps them) with `evaluate.py --tasks masking --similarity ...`, which is
resumed where it was stopped, and prints a table a model: mean over its runs +- sample standard deviation. Steps are the columns'
last parts; `untrained` are fresh weights of the same configuration.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY)]

from data_pipeline.files import write_bytes  # noqa: E402
from sycoca_ds.engine.checkpoint.seal import sealed  # noqa: E402
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS  # noqa: E402
from sycoca_ds.eval.suite import SIMILARITIES  # noqa: E402

SCORES = ["token_max:all", "token_max:content", *(name for name in SIMILARITIES if name != "token_max")]
SHOWN = ("named_over_unnamed", "other_named_over_unnamed", "objects_over_background", "pointing", "word_iou", "caption_ignored")
"""Chance: 0.5, 0.5, 0.5, the region's share, `chance_word_iou`, 0."""


def measured(checkpoint: Path, arguments: argparse.Namespace, out: Path) -> dict[str, dict[str, float]]:
    """{similarity: numbers} of a checkpoint."""
    words = ["--checkpoint", checkpoint, "--data", arguments.data, "--regions", arguments.regions, "--out", out]
    words += ["--tasks", "masking", "--similarity", *arguments.similarity]
    command = [sys.executable, REPOSITORY / "sycoca_ds/evaluate.py", *words]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{checkpoint}: evaluate.py ended with status {done.returncode}:\n{done.stdout[-3000:]}")
    return json.loads((out / "results.json").read_text())["tasks"]["masking"]["details"]["similarities"]


def cell(values: list[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    return f"{statistics.fmean(there):.3f}" + (f" +- {statistics.stdev(there):.3f}" if len(there) > 1 else "")


def table(found: dict[int, dict[str, dict[str, list[float | None]]]], similarities: list[str]) -> list[str]:
    """Lines of one model's table; `found`: {step: {similarity: {number: value of each run}}}."""
    steps = sorted(found)
    lines = [f"| score | step | {' | '.join(name.replace('_', ' ') for name in SHOWN)} |", "|---|---:|" + "---:|" * len(SHOWN)]
    for similarity in similarities:
        for step in [None, *steps]:
            prefix, at = ("untrained_", steps[-1]) if step is None else ("", step)
            numbers = found[at].get(similarity)
            if numbers is None:
                continue
            cells = [cell(numbers.get(f"{prefix}{name}", [])) for name in SHOWN]
            lines.append(f"| `{similarity}` | {'untrained' if step is None else step} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="TITLE=PATTERN of run folders, a table each")
    parser.add_argument("--data", required=True, help="data set folder, not the one that was trained on")
    parser.add_argument("--regions", required=True, help="where its objects are (docs/masking.md)")
    parser.add_argument("--similarity", nargs="+", default=SCORES, help="as evaluate.py takes them")
    parser.add_argument("--steps", nargs="*", type=int, help="default: every checkpoint that all of a model's runs have")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    out, text = Path(arguments.out), []
    for model in arguments.models:
        title, _, pattern = model.partition("=")
        runs = [path for path in sorted(Path().glob(pattern) if not pattern.startswith("/") else Path("/").glob(pattern[1:]))]
        if not runs:
            sys.exit(f"--models {model}: no folder fits {pattern}")
        steps = set.intersection(*({int(folder.name.split("_")[1]) for folder in sealed(run / "checkpoints")} for run in runs))
        steps = steps & set(arguments.steps) if arguments.steps else steps
        if not steps:
            sys.exit(f"--models {model}: {len(runs)} runs have no such checkpoint in common")
        found: dict[int, dict] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        for run in runs:
            for step in sorted(steps):
                place = out / title.replace(" ", "_") / run.parent.name / run.name / f"step_{step}"
                print(f"{title}: {run} step {step}", file=sys.stderr, flush=True)
                for similarity, numbers in measured(run / "checkpoints" / f"step_{step:08d}", arguments, place).items():
                    for name, value in numbers.items():
                        found[step][similarity][name].append(value)
        text += ["", f"## {title}, {len(runs)} runs", "", *table(found, arguments.similarity)]
        write_bytes(out / "scores.md", "\n".join([*text, ""]).encode())
    wordless = ", ".join(f"`{name}`" for name in WITHOUT_WORDS if name in arguments.similarity)
    text += ["", f"{wordless} have no scores of single words." if wordless else "", f"{arguments.data}, {arguments.regions}", ""]
    write_bytes(out / "scores.md", "\n".join(text).encode())
    print("\n".join(text))


if __name__ == "__main__":
    main()
