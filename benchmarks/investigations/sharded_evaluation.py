"""Memory and speed of an evaluation whose ranks share the weights, beside one whose ranks each hold all of them.

    python benchmarks/investigations/sharded_evaluation.py          # 2 ranks on this machine's CPU, 0.2 billion weights
    python benchmarks/investigations/sharded_evaluation.py --width 1024 --layers 24 --ranks 8 --device cuda

Writes an untrained checkpoint, starts the ranks by torchrun for each of the two ways, and prints for each rank: the highest memory
of its own while it loads and while it looks at pictures (RssAnon, sampled every 20 ms; on a GPU torch's peak), the time of loading
and of a batch. Vectors of both ways are compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
BATCH, BATCHES = 4, 3


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """Highest anonymous memory between two looks, by a thread of its own."""

    def __init__(self) -> None:
        self.most, self._ends = 0, False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ends:
            self.most = max(self.most, anonymous_bytes())
            time.sleep(0.02)

    def take(self) -> int:
        most, self.most = self.most, 0
        return most


def on_a_rank(place: str, shard: str, kind: str) -> None:
    from sycoca_ds.eval.runner.bench import Resources
    from sycoca_ds.evaluation.ranks import join_ranks, leave
    from sycoca_ds.evaluation.sharding import open_checkpoint

    team, device = join_ranks(kind)
    resources, peak, before = Resources(team), Peak(), anonymous_bytes()
    start = time.perf_counter()
    loaded = open_checkpoint(place, device, team, ema=False, shard=shard)
    found = {"rank": team.rank, "load_seconds": time.perf_counter() - start, "load_bytes": peak.take() - before}
    if device.type == "cuda":
        found["load_bytes"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    size = loaded.config.model.image.image_size
    image = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        with torch.no_grad():
            vector = loaded.model("image_features", image_BCHW=image).float().cpu()
        seconds.append(time.perf_counter() - start)
    found |= {"held_bytes": anonymous_bytes() - before, "batch_bytes": peak.take() - before, "batch_seconds": min(seconds)}
    if device.type == "cuda":
        found |= {"held_bytes": torch.cuda.memory_allocated(), "batch_bytes": torch.cuda.max_memory_allocated()}
    torch.save(vector, Path(place) / f"vector_{shard}_{team.rank}.pt")
    print(json.dumps(found), file=sys.__stdout__, flush=True)
    assert resources.team.lockstep == (shard == "yes")
    leave()


def write_checkpoint(folder: Path, width: int, layers: int) -> int:
    """Number of weights."""
    from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, ModelConfig, TextEncoderConfig
    from tests.worlds.trainings.eval_world import make_run

    heads = width // 64
    model = ModelConfig(
        embed_dim=512,
        image=ImageEncoderConfig(image_size=112, patch_size=16, layers=layers, width=width, heads=heads),
        text=TextEncoderConfig(context_length=40, vocab_size=300, layers=layers, width=width, heads=heads),
        text_decoder=DecoderConfig(layers=max(1, layers // 2), width=width, heads=heads),
        image_decoder=DecoderConfig(layers=max(1, layers // 2), width=width, heads=heads),
    )
    make_run(folder / "run", model)
    from sycoca_ds.model.shapes import our_shapes

    return sum(torch.Size(shape).numel() for shape in our_shapes(model).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--on-a-rank", nargs=2, metavar=("CHECKPOINT", "SHARD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.on_a_rank:
        on_a_rank(*given.on_a_rank, given.device)
        return
    with tempfile.TemporaryDirectory() as place:
        numbers = write_checkpoint(Path(place), given.width, given.layers)
        print(f"{numbers / 1e6:.1f} M weights, {4 * numbers / 1e6:,.0f} MB in float32; {given.ranks} ranks, {given.device}")
        for shard in ("no", "yes"):
            torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc-per-node={given.ranks}"]
            words = [__file__, "--device", given.device, "--on-a-rank", str(Path(place) / "run"), shard]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            done = subprocess.run([*torchrun, *words], env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            for rank in sorted(found, key=lambda rank: rank["rank"]):
                memory = ", ".join(f"{name} {rank[f'{name}_bytes'] / 1e6:,.0f} MB" for name in ("load", "held", "batch"))
                told = f"load {rank['load_seconds']:.1f} s, batch of {BATCH} {rank['batch_seconds']:.2f} s"
                print(f"--shard-weights {shard:3} rank {rank['rank']}: highest {memory}; {told}", flush=True)
        vectors = {path.name: torch.load(path) for path in sorted((Path(place) / "run").glob("vector_*.pt"))}
        first = next(iter(vectors.values()))
        print(f"vectors of both ways and of all ranks are equal: {all(torch.equal(first, other) for other in vectors.values())}")


if __name__ == "__main__":
    main()
