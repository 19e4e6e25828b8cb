"""A training step: ours beside open_clip's of the same CoCa, weights and captions; SyCoCa's cost beside its FLOPs, also by what
ranks the patches; the presets.

Forward, loss, backward and fused AdamW. `full`: captions of 76 tokens. `real`: those of `--captions FILE.csv` (a column `caption`),
or of 12 to 24 tokens, in two batches, padded as each trainer does: open_clip 3.3 to the context length, ours to the longest of the
batch; open_clip's main branch sorts them by length, pads to a multiple of 8 and compiles the step, its best flags.

In bf16 where the machine has such products: ours as the engine holds it, bf16 weights under a float32 master copy; open_clip by
`--precision amp_bf16`, and on a GPU also `pure_bf16`, which has no master copy. Otherwise both in float32.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import step_cost
from benchmarks.frame import Row, in_turns, timed
from benchmarks.limits import best_dtype, products, training_shapes
from benchmarks.peers import PeerProcess
from sycoca_ds.config import MaskingConfig, ModelConfig, with_vocabulary
from sycoca_ds.eval.suite import SIMILARITIES
from sycoca_ds.model.flops import step_flops
from sycoca_ds.model.open_clip.weights import to_open_clip
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import label_places
from sycoca_ds.presets import PRESETS

CONTEXT = 76
BATCHES = {"full": 1, "real": 2}
"""Batches of a turn: where lengths differ, a trainer may sort."""
PRESETS_ALONE = {"cpu": {"tiny": 16, "small": 4}, "cuda": {"small": 256, "base": 64, "930m": 32}}
"""Samples of a step."""


def lengths(kind: str, captions: Path | None, samples: int) -> list[int]:
    """Tokens of each caption, [SOT] and [EOT] counted."""
    if kind == "full":
        return [CONTEXT] * samples
    if captions is None:
        return torch.linspace(12, 24, samples).int()[torch.randperm(samples, generator=torch.Generator().manual_seed(2))].tolist()
    with open(captions, newline="") as file:
        words = [len(row["caption"].split()) + 2 for row in csv.DictReader(file)]
    return [min(CONTEXT, words[place % len(words)]) for place in range(samples)]


def texts(counts: list[int], config: ModelConfig) -> Tensor:
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


class Plain:
    """AdamW on float32 weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def ours(model: SyCoCa, batches: list[dict[str, Tensor]], dtype: torch.dtype) -> Callable[[], None]:
    """A step a batch; captions are cut to the longest of each batch and their labels found beforehand, as the loader does both.
    Every product's weight has the dtype."""
    model = model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    optimizer = Plain(model) if dtype == torch.float32 else Master(model)
    cut = []
    for batch in batches:
        text_BL = batch["text_BL"][:, : longest(batch["text_BL"])].contiguous()
        cut.append({**batch, "text_BL": text_BL, "label_at_M": label_places(text_BL, model.config.text.eot_id)})

    def turn() -> None:
        for batch in cut:
            model("train", **batch)["loss"].backward()
            optimizer.step()

    return turn


def longest(text_BL: Tensor) -> int:
    return int((text_BL != 0).sum(dim=1).max())


def sorted_by_length(batches: list[Tensor], multiple: int) -> list[Tensor]:
    """The same captions in batches of like lengths, padded to a multiple."""
    together = torch.cat(batches)
    order = (together != 0).sum(dim=1).argsort(stable=True)
    cut = together[order].split(len(batches[0]))
    return [text_BL[:, : min(CONTEXT, -(-longest(text_BL) // multiple) * multiple)].contiguous() for text_BL in cut]


def coca(name: str, kind: str, batch_size: int, options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Row:
    device, dtype = options.device, best_dtype(options.device)
    config = PRESETS[name].model
    config = replace(config, text=replace(config.text, context_length=CONTEXT))
    counts = lengths(kind, options.captions, batch_size * BATCHES[kind])
    text = texts(counts, config).split(batch_size)
    side, generator = config.image.image_size, torch.Generator().manual_seed(3)
    image = [torch.randn(batch_size, 3, side, side, generator=generator) for _ in text]
    model, precisions = SyCoCa(config, seed=0).train(), ["fp32"] if dtype == torch.float32 else ["amp_bf16"]
    precisions += ["pure_bf16"] if device.type == "cuda" else []
    flops = sum(step_flops(config, real_tokens_of(t) / len(t)) * len(t) for t in text)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.safetensors")
        save_file({key: value.contiguous() for key, value in to_open_clip(model.state_dict(), config).items()}, weights)
        with torch.no_grad():
            inputs = {"image_BCHW": image[0].to(device), "text_BL": text[0].to(device)}
            loss = model.to(device)("train", **inputs)["loss"].item()
        ways, losses, peak = {}, {"ours": loss}, {}
        batches = [{"image_BCHW": i.to(device), "text_BL": t.to(device)} for i, t in zip(image, text, strict=True)]
        ways["ours"] = timed(ours(model, batches, dtype), device)
        twins = [PeerProcess(peer.name, peer.folders) for peer in peers.values() for _ in precisions[1:]]
        asked = [(peer, precisions[0]) for peer in peers.values()] + [(twin, precisions[1]) for twin in twins]
        for peer, precision in asked:
            main = peer.name.endswith("main")
            given, files = sorted_by_length(list(text), 8) if main else text, []
            for number, (i, t) in enumerate(zip(image, given, strict=True)):
                files.append(str(Path(folder, f"{peer.name}_{number}.safetensors")))
                save_file({"image": i, "text": t.contiguous()}, files[-1])
            peer.ask("model_of", name=name, weights=str(weights), train=True)
            label = f"{peer.name}, {precision}"
            losses[label] = peer.ask("training", inputs=files, precision=precision, compiled=main)["loss"]
            if not main and precision != "pure_bf16" and abs(losses[label] - loss) > 1e-3 * abs(loss):
                raise SystemExit(f"training, {name}: our loss is {loss}, that of {label} {losses[label]}: two models")
            ways[label] = peer.turn()
            ways[label]()  # kernels are chosen, a compiler does its work
        ways["ours"]()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        turns = in_turns(ways, options.turns)
        if device.type == "cuda":
            peak["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        for peer, _ in asked:
            peer.ask("release")
        for twin in twins:
            twin.close()
    alone, operations = products(training_shapes(config, batch_size, real_tokens_of(text[0]) / batch_size), dtype, device)
    samples = batch_size * len(text)
    what = f"{name}, batch {batch_size}, {kind} captions ({sum(counts) / len(counts):.0f} of {CONTEXT} tokens), {str(dtype)[6:]}"
    more: dict[str, Any] = {"losses": losses, "flops": flops, **peak}
    limit = {"limit_turns": alone, "limit_work": samples * operations / flops, "limited_by": "its matrix products"}
    return Row("training", what, "samples/s", samples, turns.pop("ours"), turns, **limit, more=more)


def real_tokens_of(text_BL: Tensor) -> int:
    """Real tokens of all captions."""
    return int((text_BL != 0).sum())


def sycoca(options: argparse.Namespace) -> Iterator[Row]:
    """Forward and backward of the variants, in turns, at one shape (step_cost.py); what the formula expects stands beside."""
    device, dtype, batch_size = options.device, best_dtype(options.device), 8
    precision = "fp32" if dtype == torch.float32 else "bf16"
    shape = step_cost.SHAPE
    models = {n: step_cost.build(step_cost.variant(shape, n), device, precision, False) for n in step_cost.VARIANTS}
    batch = step_cost.inputs(shape, batch_size, device)
    ways = {n: timed(lambda model=model: step_cost.step(model, batch), device) for n, model in models.items()}
    for way in ways.values():
        way()
    turns = in_turns(ways, options.turns)
    flops = {n: step_flops(step_cost.variant(shape, n)) for n in models}
    for name in list(models)[1:]:
        expected = {"expected": flops["coca"] / flops[name], "limited_by": "FLOPs"}
        beside = {"coca": turns["coca"]}
        yield Row("training", f"{name}, batch {batch_size}, 384 wide", "samples/s", batch_size, turns[name], beside, **expected)


def scores(options: argparse.Namespace) -> Iterator[Row]:
    """Each of what ranks the patches beside random masks, masked at the embedding."""
    device, batch_size = options.device, 4
    precision = "fp32" if best_dtype(device) == torch.float32 else "bf16"
    masking = MaskingConfig(mask_at="embedding")
    configs = {"random masks": replace(step_cost.SHAPE, masking=replace(masking, mask_by="random"))}
    configs |= {name: replace(step_cost.SHAPE, masking=replace(masking, similarity=name)) for name in SIMILARITIES}
    batch = {**step_cost.inputs(step_cost.SHAPE, batch_size, device), "key_B": torch.arange(batch_size, device=device)}
    ways = {}
    for name, config in configs.items():
        model = step_cost.build(config, device, precision, False)
        ways[name] = timed(lambda model=model: step_cost.step(model, batch), device)
        ways[name]()
    turns = in_turns(ways, options.turns)
    flops = {name: step_flops(config) for name, config in configs.items()}
    for name in SIMILARITIES:
        expected = {"expected": flops["random masks"] / flops[name], "limited_by": "FLOPs"}
        what = f"sycoca, masks by {name}, batch {batch_size}, 384 wide"
        yield Row("training", what, "samples/s", batch_size, turns[name], {"random masks": turns["random masks"]}, **expected)


def presets(options: argparse.Namespace) -> Iterator[Row]:
    """A SyCoCa step of each preset, captions of full length: how near to the matrix products alone."""
    device, dtype = options.device, best_dtype(options.device)
    for name, batch_size in PRESETS_ALONE[device.type].items():
        config = PRESETS[name].model
        config = with_vocabulary(config, config.text.vocab_size or 8192)
        batch, turn = step_cost.inputs(config, batch_size, device), None
        try:
            turn = timed(ours(SyCoCa(config, seed=0).train().to(device), [batch], dtype), device)
            turn()
            turns = in_turns({"ours": turn}, options.turns)["ours"]
        except torch.OutOfMemoryError:
            print(f"training, {name}: batch {batch_size} does not fit into this GPU's memory")
            continue
        alone, operations = products(training_shapes(config, batch_size, config.text.context_length), dtype, device)
        limit = {"limit_turns": alone, "limit_work": operations / step_flops(config), "limited_by": "its matrix products"}
        yield Row("training", f"preset {name}, batch {batch_size}", "samples/s", batch_size, turns, **limit)


def measure(options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Iterator[Row]:
    names = options.models or (["coca_ViT-B-32"] if options.device.type == "cpu" else ["coca_base", "coca_ViT-L-14"])
    for name in names:
        for batch_size in options.batch_sizes or ([8] if options.device.type == "cpu" else [64, 256]):
            for kind in BATCHES:
                yield coca(name, kind, batch_size, options, peers)
    yield from sycoca(options)
    yield from scores(options)
    yield from presets(options)
