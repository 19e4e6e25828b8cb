"""The model on the GPU against the model on the CPU: same weights, same inputs."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace

import torch
from check import Checks
from torch import Tensor

from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, MaskingConfig, ModelConfig, TextEncoderConfig
from sycoca_ds.data.resampling import resize_crops
from sycoca_ds.model.generation import Decoding
from sycoca_ds.model.masking.patches import split_patches
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import label_places

BASE = ModelConfig(
    embed_dim=256,
    image=ImageEncoderConfig(image_size=112, patch_size=14, layers=6, width=384, heads=6),
    text=TextEncoderConfig(context_length=40, vocab_size=2048, layers=4, width=256, heads=4),
    text_decoder=DecoderConfig(layers=4, width=256, heads=4),
    image_decoder=DecoderConfig(layers=4, width=384, heads=6),
    init_std=0.05,
)
MODELS = {
    "sycoca, masked at the input": BASE,
    "sycoca, masked at the embedding": replace(BASE, masking=MaskingConfig(mask_at="embedding")),
    "coca, attention pooling": replace(BASE, family="coca", image=replace(BASE.image, pooling="attention", pooling_queries=64)),
    "clip": replace(BASE, family="clip"),
}
BATCH = 16


def run(checks: Checks, options: argparse.Namespace) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, config in MODELS.items():
        compare(checks, name, config)
    generation(checks)
    resizing(checks)


def inputs(config: ModelConfig) -> dict[str, Tensor]:
    """Pictures and captions of 3 to all tokens."""
    generator = torch.Generator().manual_seed(1)
    length = config.text.context_length
    image = torch.randint(0, 256, (BATCH, 3, *2 * [config.image.image_size]), generator=generator, dtype=torch.uint8)
    text = torch.randint(3, config.text.vocab_size, (BATCH, length), generator=generator)
    text[:, 0] = config.text.sot_id
    for row, count in enumerate(torch.linspace(3, length, BATCH).int().tolist()):
        text[row, count - 1], text[row, count:] = config.text.eot_id, 0
    places = label_places(text, config.text.eot_id)
    return {"image_BCHW": image, "text_BL": text, "label_at_M": places, "key_B": torch.arange(BATCH)}


def step(config: ModelConfig, device: str, dtype: torch.dtype) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(losses, gradients) of one step, as float64 on the CPU."""
    model = SyCoCa(config, seed=0).to(device, dtype)
    report = model("train", **{name: value.to(device) for name, value in inputs(config).items()})
    report["loss"].backward()
    return (
        {name: value.item() for name, value in report.items()},
        {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None},
    )


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Length of the difference of all gradients together, relative to that of what is wanted."""
    if found.keys() != wanted.keys():
        return float("nan")
    return float(
        (sum((found[n] - wanted[n]).square().sum() for n in wanted) / sum(w.square().sum() for w in wanted.values())) ** 0.5
    )


def compare(checks: Checks, name: str, config: ModelConfig) -> None:
    losses, grads = step(config, "cpu", torch.float32)
    gpu_losses, gpu_grads = step(config, "cuda", torch.float32)
    worst = max(abs(gpu_losses[n] / losses[n] - 1) for n in losses if n in ("loss", "itc", "ic", "mim"))
    checks.below(f"{name}: losses in float32", worst, 1e-5)
    checks.below(f"{name}: gradients in float32", distance(gpu_grads, grads), 1e-4)
    cpu_bf16 = distance(step(config, "cpu", torch.bfloat16)[1], grads)
    gpu_bf16 = distance(step(config, "cuda", torch.bfloat16)[1], grads)
    said = f"{gpu_bf16:.2e} from float32's, the CPU's bf16 {cpu_bf16:.2e}"
    checks.add(f"{name}: gradients in bf16", gpu_bf16 <= 1.5 * cpu_bf16, said)
    twice = distance(*(step(config, "cuda", torch.bfloat16)[1] for _ in range(2)))
    checks.add(f"{name}: the same step twice, in bf16", None, f"gradients differ by {twice:.1e}")
    waited = waits(config)
    checks.add(f"{name}: waits for the device in a step", waited == 0, f"{waited}")
    if config.reconstructs:
        hidden = [masks(config, device) for device in ("cpu", "cuda")]
        share = (hidden[0] != hidden[1]).double().mean().item()
        checks.below(f"{name}: patches on the other side of the mask", share, 1e-2)


@torch.no_grad()
def masks(config: ModelConfig, device: str) -> Tensor:
    """What eq. 7 hides (B, N), on the CPU."""
    model, given = SyCoCa(config, seed=0).to(device).eval(), inputs(config)
    scores = model("masking_scores", image_BCHW=given["image_BCHW"].to(device), text_CBL=given["text_BL"][None].to(device))[:, 0]
    return split_patches(scores, config.masking.high_ratio, "highest")[1].cpu()


def waits(config: ModelConfig) -> int:
    """How often the host waits for the device in forward and backward: each keeps it from queueing work ahead."""
    model = SyCoCa(config, seed=0).to("cuda", torch.bfloat16)
    given = {name: value.cuda() for name, value in inputs(config).items()}
    model("train", **given)["loss"].backward()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        model("train", **given)["loss"].backward()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


@torch.no_grad()
def generation(checks: Checks) -> None:
    given = inputs(BASE)["image_BCHW"]
    models = {device: SyCoCa(BASE, seed=0).to(device).eval() for device in ("cpu", "cuda")}
    for name, how in (("greedy", Decoding()), ("6 beams", Decoding(beams=6))):
        cpu, gpu = (model("generate", image_BCHW=given.to(device), steps=20, decoding=how) for device, model in models.items())
        same = int((cpu == gpu.cpu()).all(1).sum())
        checks.add(f"captions of 20 tokens, {name}", same == BATCH, f"{same} of {BATCH} equal the CPU's")


def resizing(checks: Checks) -> None:
    generator = torch.Generator().manual_seed(2)
    size_B2 = torch.randint(100, 500, (40, 2), generator=generator)
    pixels = torch.randint(0, 256, (int(3 * size_B2.prod(1).sum()),), generator=generator, dtype=torch.uint8)
    torch.backends.cuda.matmul.allow_tf32 = True  # as training has it
    found = [resize_crops(pixels.to(device), size_B2, 224).cpu().int() for device in ("cpu", "cuda")]
    torch.backends.cuda.matmul.allow_tf32 = False
    worst = int((found[0] - found[1]).abs().max())
    checks.add("resizing equals the CPU's", worst == 0, f"at most {worst} grey levels")
