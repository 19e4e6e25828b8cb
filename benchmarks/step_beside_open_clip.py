"""A training step beside open_clip 3.3's: the same CoCa, weights and captions, in turns, on the GPU or the CPU.

    python benchmarks/step_beside_open_clip.py --open-clip build/open_clip --models coca_base coca_ViT-L-14 --batch-sizes 64 256

Forward, loss, backward and fused AdamW. `--lengths full` has captions of 76 tokens; `real` those of `--captions FILE.csv` (a column
`caption`), or of 12 to 24 tokens, padded as each trainer does: open_clip to the context length, ours to the longest of the batch.
Ours runs as the engine holds it, bf16 weights under a float32 master copy; open_clip as its `--precision amp_bf16` does, and
`pure_bf16`, whose weights have no master copy. First the losses of both are compared in float32.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from sycoca_ds.config import ModelConfig  # noqa: E402
from sycoca_ds.model.open_clip.weights import to_open_clip  # noqa: E402
from sycoca_ds.model.sycoca import SyCoCa  # noqa: E402
from sycoca_ds.presets import PRESETS  # noqa: E402
from tests.worlds.open_clip.peer import skip_initialisation  # noqa: E402

CONTEXT = 76


def lengths(options: argparse.Namespace, batch_size: int) -> list[int]:
    """Tokens of each caption, [SOT] and [EOT] counted."""
    if options.lengths == "full":
        return [CONTEXT] * batch_size
    if options.captions is None:
        return torch.linspace(12, 24, batch_size).int().tolist()
    with open(options.captions, newline="") as file:
        words = [len(row["caption"].split()) + 2 for row in csv.DictReader(file)]
    return [min(CONTEXT, words[place % len(words)]) for place in range(batch_size)]


def captions(counts: list[int], config: ModelConfig) -> Tensor:
    """Random ids of CLIP's BPE, padded to CONTEXT."""
    generator = torch.Generator().manual_seed(1)
    text_BL = torch.randint(1000, 49000, (len(counts), CONTEXT), generator=generator)
    text_BL[:, 0] = config.text.sot_id
    for row, count in enumerate(counts):
        text_BL[row, count - 1], text_BL[row, count:] = config.text.eot_id, 0
    return text_BL


class Master:
    """AdamW on float32 copies of bf16 weights, as ZeRO-1 holds them on one rank."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = list(model.parameters())
        self.copies = [p.detach().float().clone().requires_grad_() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.copies, lr=1e-4, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        for master, weight in zip(self.copies, self.weights, strict=True):
            master.grad = weight.grad.float()
            weight.grad = None
        self.optimizer.step()
        torch._foreach_copy_(self.weights, self.copies)


def ours(model: SyCoCa, image: Tensor, text_BL: Tensor, longest: int) -> Callable[[], Tensor]:
    model, held = model.to(torch.bfloat16), text_BL[:, :longest].contiguous()
    optimizer = Master(model)

    def step() -> Tensor:
        loss = model("train", image_BCHW=image, text_BL=held)["loss"]
        loss.backward()
        optimizer.step()
        return loss

    return step


def theirs(model: torch.nn.Module, image: Tensor, text_BL: Tensor, device: torch.device, pure: bool) -> Callable[[], Tensor]:
    from open_clip.loss import CoCaLoss

    criterion = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    if pure:
        model, image = model.to(torch.bfloat16), image.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=not pure):
            loss = sum(criterion(**model(image, text_BL)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def seconds(step: Callable[[], Tensor], device: torch.device) -> float:
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronise()
    start = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - start


def peak_gib(step: Callable[[], Tensor]) -> float:
    if not torch.cuda.is_available():
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 2**30


def build(name: str) -> tuple[ModelConfig, SyCoCa, torch.nn.Module]:
    """The same weights in both, on the CPU."""
    import open_clip

    config = PRESETS[name].model
    config = replace(config, text=replace(config.text, context_length=CONTEXT))
    model = SyCoCa(config, seed=0)
    skip_initialisation()
    peer = open_clip.create_model(name)
    peer.load_state_dict(to_open_clip(model.state_dict(), config))
    return config, model.train(), peer.train()


def compare(name: str, built: tuple[ModelConfig, SyCoCa, torch.nn.Module], batch_size: int, options: argparse.Namespace) -> dict:
    from open_clip.loss import CoCaLoss

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, model, peer = built
    counts = lengths(options, batch_size)
    text_BL = captions(counts, config).to(device)
    side = config.image.image_size
    image = torch.randn(batch_size, 3, side, side, device=device)

    few, losses, criterion = slice(0, min(8, batch_size)), [], CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    with torch.no_grad():
        one = copy.deepcopy(model).to(device)
        losses.append(one("train", image_BCHW=image[few], text_BL=text_BL[few])["loss"].item())
        one = copy.deepcopy(peer).to(device)
        losses.append(sum(criterion(**one(image[few], text_BL[few]))).item())
    del one

    found: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    kinds = {"ours": None, "open_clip amp_bf16": False, "open_clip pure_bf16": True}
    for _ in range(options.turns):
        for kind, pure in kinds.items():
            if device.type == "cuda":
                torch.cuda.empty_cache()
            step = None
            try:
                if pure is None:
                    step = ours(copy.deepcopy(model).to(device), image, text_BL, max(counts))
                else:
                    step = theirs(copy.deepcopy(peer).to(device), image, text_BL, device, pure)
                for _ in range(2):
                    seconds(step, device)
                found.setdefault(kind, []).extend(seconds(step, device) for _ in range(options.steps))
                memory[kind] = peak_gib(step)
            except torch.OutOfMemoryError:
                memory[kind] = float("inf")
    step = None
    medians = {kind: statistics.median(times) for kind, times in found.items()}
    row = {
        "model": name,
        "batch_size": batch_size,
        "lengths": options.lengths,
        "mean_tokens": sum(counts) / len(counts),
        "losses": losses,
        "samples_per_second": {kind: batch_size / median for kind, median in medians.items()},
        "seconds": {kind: [min(times), max(times)] for kind, times in found.items()},
        "peak_gib": memory,
    }
    speeds = row["samples_per_second"]
    print(f"{name}, batch {batch_size}, {row['mean_tokens']:.1f} of {CONTEXT} tokens, losses {losses[0]:.5f} {losses[1]:.5f}")
    for kind in kinds:
        if kind in speeds:
            ratio = speeds["ours"] / speeds[kind] if "ours" in speeds else float("nan")
            print(f"  {kind:<20} {speeds[kind]:>8.1f} samples/s {memory[kind]:>7.1f} GiB   ours {ratio:.2f} times", flush=True)
        else:
            print(f"  {kind:<20} out of memory", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-clip", type=Path, help="folder with open_clip and what it imports (make peer); default: installed")
    parser.add_argument("--models", nargs="+", default=["coca_ViT-B-32"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16])
    parser.add_argument("--lengths", nargs="+", choices=("full", "real"), default=["full", "real"])
    parser.add_argument("--captions", type=Path)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.open_clip:
        sys.path.append(str(options.open_clip))
    rows, kinds = [], options.lengths
    for name in options.models:
        built = build(name)
        for batch_size in options.batch_sizes:
            for options.lengths in kinds:
                rows.append(compare(name, built, batch_size, options))
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
