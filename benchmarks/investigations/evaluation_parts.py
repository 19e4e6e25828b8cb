"""What rank 0 of an evaluation does alone: captions' scores by Java, and a linear probe's fits.

    python benchmarks/investigations/evaluation_parts.py                     # METEOR on 1,000 pictures, a probe of 8,000
    python benchmarks/investigations/evaluation_parts.py --rows 75750 --width 1024   # Food-101, ViT-L/14's width

METEOR: NoCaps' four corpora (all pictures and three domains) by one process that remembers pictures, and by one each. Probe: what
an iteration of L-BFGS takes, and a whole search for C.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from sycoca_ds.eval.probe.fitting import GRID, fit, search
from sycoca_ds.eval.probe.scoring import accuracies
from sycoca_ds.eval.scorers.captions import Meteor

WORDS = "a the small large red blue green star circle square ring heart left right of on under cat dog man".split()


def drawn_captions(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(6, 14))) for _ in range(count)]


def meteor(pictures: int) -> None:
    references = {str(n): [said] for n, said in enumerate(drawn_captions(pictures, 0))}
    hypotheses = {str(n): [said] for n, said in enumerate(drawn_captions(pictures, 1))}
    groups = [list(references), *(list(references)[start::3] for start in range(3))]
    tables = [({key: references[key] for key in group}, {key: hypotheses[key] for key in group}) for group in groups]
    found = {}
    start = time.perf_counter()
    with Meteor() as shared:
        found["one process"] = [shared.score(*table)[0] for table in tables]
    seconds = {"one process": time.perf_counter() - start}
    start = time.perf_counter()
    found["one each"] = []
    for table in tables:
        with Meteor() as own:
            found["one each"].append(own.score(*table)[0])
    seconds["one each"] = time.perf_counter() - start
    assert found["one process"] == found["one each"]
    told = ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items())
    print(f"METEOR, {pictures:,} pictures and three domains of them: {told}")


def probe(rows: int, width: int, classes: int) -> None:
    random = np.random.default_rng(0)
    middle = random.standard_normal((classes, width))
    label = random.integers(0, classes, rows)
    feature = 0.5 * middle[label] + random.standard_normal((rows, width))
    away = np.arange(rows) % 5 == 0
    iterations, spent = [], []

    def score(place: int) -> float:
        start = time.perf_counter()
        fitted = fit(feature[~away], label[~away], GRID[place])
        spent.append(time.perf_counter() - start)
        iterations.append(fitted.iterations)
        return accuracies(fitted.logits(feature[away], classes), label[away])["top1"]

    best, tried = search(score)
    print(
        f"probe, {rows:,} x {width} in {classes} classes: {len(tried)} fits of {min(iterations)} to {max(iterations)} iterations, "
        f"mean {np.mean(iterations):.0f}, in {sum(spent):.0f} s, {sum(spent) / sum(iterations):.3f} s an iteration, "
        f"C = {GRID[best]:.3g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, default=101)
    given = parser.parse_args()
    meteor(given.pictures)
    probe(given.rows, given.width, given.classes)


if __name__ == "__main__":
    main()
