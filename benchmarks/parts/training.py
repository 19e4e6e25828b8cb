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
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import step_cost
from benchmarks.frame import Row, Turn, Way, in_turns, measured, timed
from benchmarks.limits import best_dtype, products, training_shapes
from benchmarks.peers import PeerProcess, write_clip_tokenizer
from sycoca_ds.config import MaskingConfig, ModelConfig, with_vocabulary
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.suite import SIMILARITIES
from sycoca_ds.model.flops import step_flops
from sycoca_ds.model.open_clip.weights import to_open_clip
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import label_places
from sycoca_ds.presets import PRESETS

CONTEXT = 76
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""How far a loss may be from the same in float32 with all padding."""
BATCHES = {"full": 1, "real": 2}
"""Batches of a turn: where lengths differ, a trainer may sort."""
PRESETS_ALONE = {"cpu": {"tiny": 16, "small": 4}, "cuda": {"small": 256, "base": 64, "930m": 32}}
"""Samples of a step."""
SHAPE_BATCH = {"cpu": 8, "cuda": 512}
"""Of the variants: on a GPU so many that its products take most of a step, not the starts of its kernels."""


def lengths(kind: str, captions: Path | None, samples: int, open_clip: Path) -> list[int]:
    """Tokens of each caption by CLIP's BPE, [SOT] and [EOT] counted.

    Args:
        open_clip: the folder that `make peer` fills; it holds CLIP's merges.
    """
    if kind == "full":
        return [CONTEXT] * samples
    if captions is None:
        return torch.linspace(12, 24, samples).int()[torch.randperm(samples, generator=torch.Generator().manual_seed(2))].tolist()
    with open(captions, newline="") as file:
        said = [row["caption"] for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory() as folder:
        write_clip_tokenizer(open_clip, Path(folder, "tokenizer.json"))
        ids_NL = Tokenizer(Path(folder, "tokenizer.json")).encode(said, CONTEXT)
    tokens_N = (ids_NL != 0).sum(axis=1)
    return [int(tokens_N[place % len(said)]) for place in range(samples)]


def texts(counts: list[int], config: ModelConfig) -> Tensor:
    """Random ids of CLIP's BPE, padded to CONTEXT."""
    generator = torch.Generator().manual_seed(1)
    text_BL = torch.randint(1000, 49000, (len(counts), CONTEXT), generator=generator)
    text_BL[:, 0] = config.text.sot_id
    for row, count in enumerate(counts):
        text_BL[row, count - 1], text_BL[row, count:] = config.text.eot_id, 0
    return text_BL


class Master:
    """AdamW on float32 copies of bf16 weights, as ZeRO-1 holds them on one rank. The float32 gradients stay: new memory for
    them at every step costs a page fault for each 4 KiB."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = list(model.parameters())
        self.copies = [p.detach().float().clone().requires_grad_() for p in self.weights]
        for copy in self.copies:
            copy.grad = torch.zeros_like(copy)
        self.optimizer = torch.optim.AdamW(self.copies, lr=1e-4, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        torch._foreach_copy_([copy.grad for copy in self.copies], [weight.grad for weight in self.weights])
        for weight in self.weights:
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


def ours(model: SyCoCa, batches: list[dict[str, Tensor]], dtype: torch.dtype) -> tuple[Callable[[], None], float]:
    """(a step a batch, the loss of the first one as these steps compute it); captions are cut to the longest of each batch and
    their labels found beforehand, as the loader does both. Every product's weight has the dtype."""
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

    with torch.no_grad():
        return turn, model("train", **cut[0])["loss"].item()


def longest(text_BL: Tensor) -> int:
    return int((text_BL != 0).sum(dim=1).max())


def sorted_by_length(batches: list[Tensor], multiple: int) -> list[Tensor]:
    """The same captions in batches of like lengths, padded to a multiple."""
    together = torch.cat(batches)
    order = (together != 0).sum(dim=1).argsort(stable=True)
    cut = together[order].split(len(batches[0]))
    return [text_BL[:, : min(CONTEXT, -(-longest(text_BL) // multiple) * multiple)].contiguous() for text_BL in cut]


@dataclass
class Compared:
    """A CoCa on batches of pictures and captions, which each side trains on from the same weights."""

    name: str
    config: ModelConfig
    image: list[Tensor]
    text: list[Tensor]
    dtype: torch.dtype
    device: torch.device
    folder: Path
    losses: dict[str, float] = field(default_factory=dict)
    """Of the first batch, before a step: in float32 with padding whole, and as each side's steps compute it."""
    peak_gib: float | None = None

    def __post_init__(self) -> None:
        model = SyCoCa(self.config, seed=0).train()
        kept = {key: value.contiguous() for key, value in to_open_clip(model.state_dict(), self.config).items()}
        save_file(kept, self.folder / "weights.safetensors")
        with torch.no_grad():
            inputs = {"image_BCHW": self.image[0].to(self.device), "text_BL": self.text[0].to(self.device)}
            self.losses["float32"] = model.to(self.device)("train", **inputs)["loss"].item()

    def check(self, label: str, loss: float, error: float) -> None:
        self.losses[label] = loss
        if abs(loss - self.losses["float32"]) > error * abs(self.losses["float32"]):
            raise SystemExit(f"training, {self.name}: the loss is {self.losses['float32']}, by {label} {loss}: two models")

    @contextmanager
    def ours(self) -> Iterator[Callable[[], Turn]]:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        pairs = zip(self.image, self.text, strict=True)
        batches = [{"image_BCHW": i.to(self.device), "text_BL": t.to(self.device)} for i, t in pairs]
        turn, loss = ours(SyCoCa(self.config, seed=0).train().to(self.device), batches, self.dtype)
        self.check("ours", loss, ROUNDING[self.dtype])
        try:
            yield timed(turn, self.device)
        finally:
            del turn, batches
            if on_gpu:
                self.peak_gib = torch.cuda.max_memory_allocated() / 2**30
                torch.cuda.empty_cache()

    @contextmanager
    def theirs(self, peer: PeerProcess, precision: str) -> Iterator[Callable[[], Turn]]:
        main = peer.name.endswith("main")
        given, files = sorted_by_length(self.text, 8) if main else self.text, []
        for number, (i, t) in enumerate(zip(self.image, given, strict=True)):
            files.append(str(self.folder / f"{peer.name}_{number}.safetensors"))
            save_file({"image": i, "text": t.contiguous()}, files[-1])
        try:
            peer.ask("model_of", name=self.name, weights=str(self.folder / "weights.safetensors"), train=True)
            loss = peer.ask("training", inputs=files, precision=precision, compiled=main)["loss"]
            if main or precision == "pure_bf16":  # sorted, or rounded: another loss
                self.losses[f"{peer.name}, {precision}"] = loss
            else:
                self.check(f"{peer.name}, {precision}", loss, 1e-3)
            yield peer.turn()
        finally:
            peer.ask("release")


def coca(name: str, kind: str, batch_size: int, options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Row:
    device, dtype = options.device, best_dtype(options.device)
    config = PRESETS[name].model
    config = replace(config, text=replace(config.text, context_length=CONTEXT))
    counts = lengths(kind, options.captions, batch_size * BATCHES[kind], options.open_clip)
    text = list(texts(counts, config).split(batch_size))
    side, generator = config.image.image_size, torch.Generator().manual_seed(3)
    image = [torch.randn(batch_size, 3, side, side, generator=generator) for _ in text]
    precisions = ["fp32"] if dtype == torch.float32 else ["amp_bf16"]
    precisions += ["pure_bf16"] if device.type == "cuda" else []
    flops = sum(step_flops(config, real_tokens_of(t) / len(t)) * len(t) for t in text)
    with tempfile.TemporaryDirectory() as folder:
        compared = Compared(name, config, image, text, dtype, device, Path(folder))
        ways: dict[str, Way] = {"ours": compared.ours}
        ways |= {f"{peer.name}, {p}": partial(compared.theirs, peer, p) for p in precisions for peer in peers.values()}
        turns = measured(ways, options.turns, device)
    alone, operations = products(training_shapes(config, batch_size, real_tokens_of(text[0]) / batch_size), dtype, device)
    samples = batch_size * len(text)
    what = f"{name}, batch {batch_size}, {kind} captions ({sum(counts) / len(counts):.0f} of {CONTEXT} tokens), {str(dtype)[6:]}"
    more: dict[str, Any] = {"losses": compared.losses, "flops": flops, "peak_gib": compared.peak_gib}
    limit = {"limit_turns": alone, "limit_work": samples * operations / flops, "limited_by": "its matrix products"}
    return Row("training", what, "samples/s", samples, turns.pop("ours"), turns, **limit, more=more)


def real_tokens_of(text_BL: Tensor) -> int:
    """Real tokens of all captions."""
    return int((text_BL != 0).sum())


def sycoca(options: argparse.Namespace) -> Iterator[Row]:
    """Forward and backward of the variants, in turns, at one shape (step_cost.py); what the formula expects stands beside."""
    device, dtype, batch_size = options.device, best_dtype(options.device), SHAPE_BATCH[options.device.type]
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
    device, batch_size = options.device, SHAPE_BATCH[options.device.type] // 2
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
            turn = timed(ours(SyCoCa(config, seed=0).train().to(device), [batch], dtype)[0], device)
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
                try:
                    yield coca(name, kind, batch_size, options, peers)
                except torch.OutOfMemoryError:
                    print(f"training, {name}: batch {batch_size} does not fit into this GPU's memory")
                if options.device.type == "cuda":
                    torch.cuda.empty_cache()
    yield from sycoca(options)
    yield from scores(options)
    yield from presets(options)
