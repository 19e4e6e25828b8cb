"""What a training step costs, against the FLOPs formula, and what activation checkpointing saves.

    python benchmarks/step_cost.py                       # on this machine's GPU, or its CPU
    python benchmarks/step_cost.py --preset base --batch-size 64 --precision bf16

Times forward and backward of CoCa, SyCoCa with `mask_at = embedding` and with `mask_at = input` at one shape, taking turns, so that
a machine that slows down slows all three; the median of the ratios to CoCa stands beside the ratio of `step_flops`. Then, each
in a process of its own, the peak memory of one step with and without activation checkpointing.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import time

import torch

from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, MaskingConfig, ModelConfig, TextEncoderConfig, with_vocabulary
from sycoca_ds.model.flops import step_flops
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS

SHAPE = ModelConfig(
    embed_dim=384,
    image=ImageEncoderConfig(image_size=224, patch_size=16, layers=6, width=384, heads=6),
    text=TextEncoderConfig(context_length=76, vocab_size=8192, layers=4, width=384, heads=6),
    text_decoder=DecoderConfig(layers=4, width=384, heads=6),
    image_decoder=DecoderConfig(layers=4, width=384, heads=6),
)
"""`small` with fewer layers, so that a step takes about a second on two CPU cores."""

VARIANTS = {
    "coca": ("coca", "input"),
    "sycoca, mask_at embedding": ("sycoca", "embedding"),
    "sycoca, mask_at input": ("sycoca", "input"),
}


def variant(shape: ModelConfig, name: str) -> ModelConfig:
    family, mask_at = VARIANTS[name]
    return dataclasses.replace(shape, family=family, masking=MaskingConfig(mask_at=mask_at))


def inputs(config: ModelConfig, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random images and captions of full length."""
    torch.manual_seed(0)
    text_BL = torch.randint(3, config.text.vocab_size, (batch_size, config.text.context_length))
    text_BL[:, 0], text_BL[:, -1] = config.text.sot_id, config.text.eot_id
    side = config.image.image_size
    return {"image_BCHW": torch.randn(batch_size, 3, side, side, device=device), "text_BL": text_BL.to(device)}


def build(config: ModelConfig, device: torch.device, precision: str, checkpointing: bool) -> SyCoCa:
    model = SyCoCa(config, seed=0).train().to(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    model.set_activation_checkpointing(checkpointing)
    return model


def step(model: SyCoCa, batch: dict[str, torch.Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    model("train", **batch)["loss"].backward()


def seconds(model: SyCoCa, batch: dict[str, torch.Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(model, batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib(shape: ModelConfig, name: str, options: argparse.Namespace, device: torch.device) -> float:
    """Highest memory of the second step above that of model and gradients, MiB. On a CPU the process's resident set, which an
    allocator that keeps freed pages can only make too high."""
    checkpointing = options.memory_of.endswith("checkpointing")
    model = build(variant(shape, name), device, options.precision, checkpointing)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    batch = inputs(shape, options.batch_size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model("train", **batch)["loss"].backward()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident("VmRSS")
    model("train", **batch)["loss"].backward()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB in use now (VmRSS) or at most so far (VmHWM; getrusage's would be the parent's, which a child inherits)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), help="default: small with fewer layers")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = with_vocabulary(PRESETS[options.preset].model, SHAPE.text.vocab_size) if options.preset else SHAPE
    if options.memory_of:
        print(f"{peak_mib(shape, options.memory_of.split(':')[0], options, device):.1f}")
        return
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{where}, torch {torch.__version__}, {options.precision}, batch {options.batch_size}, {options.turns} turns")
    models = {name: build(variant(shape, name), device, options.precision, False) for name in VARIANTS}
    batch, flops = inputs(shape, options.batch_size, device), {n: step_flops(variant(shape, n)) for n in VARIANTS}
    for model in models.values():
        seconds(model, batch, device)
    turns = [{name: seconds(model, batch, device) for name, model in models.items()} for _ in range(options.turns)]
    print(f"{'':<28}{'ms a step':>10}{'GFLOP/s':>10}{'ratio':>8}{'formula':>9}{'off by':>8}   turns' ratios")
    for name in VARIANTS:
        ratios = sorted(turn[name] / turn["coca"] for turn in turns)
        taken, ratio = statistics.median(turn[name] for turn in turns), statistics.median(ratios)
        formula = flops[name] / flops["coca"]
        rate = flops[name] * options.batch_size / taken / 1e9
        print(
            f"{name:<28}{1000 * taken:>10.0f}{rate:>10.0f}{ratio:>8.3f}{formula:>9.3f}{100 * (ratio / formula - 1):>+7.1f} %"
            f"   {ratios[0]:.3f} to {ratios[-1]:.3f}"
        )
    del models
    print("\npeak memory of a step's activations, MiB")
    for name in VARIANTS:
        found = []
        for way in ("plain", "checkpointing"):
            command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", f"{name}:{way}"]
            found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"{name:<28}{found[0]:>10.0f} plain{found[1]:>10.0f} with checkpointing   {found[1] / found[0]:.2f} of it")


if __name__ == "__main__":
    main()
