"""`python -m sycoca_ds.model PRESET...`: parameters by part, tokens and FLOPs by pass, without allocating a weight."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import tyro

from data_pipeline.command_line import nearest, parse_command
from data_pipeline.errors import UserError
from data_pipeline.tokenizer.bpe import TrainTokenizerCommand
from sycoca_ds.config import ModelConfig, with_vocabulary
from sycoca_ds.presets import PRESETS, VOCABULARIES

PROGRAM = "python -m sycoca_ds.model"

FORMULA = """\
A block on n tokens of width d: 24 n d^2 + 4 n^2 d (half the second under a causal mask); on m tokens of width d' of the other
modality: 20 n d^2 + 4 m d d' + 4 n m d. Linear layers 2 x rows x in x out. Multiply-adds count 2; norms, softmax, GELU count 0.
Step = 3 x forward (backward costs two), scores once; checkpointing adds one forward of the blocks without each one's last product
(8 n d^2), several micro-batches one of both encoders."""


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, without allocating one."""
    from sycoca_ds.model.shapes import our_shapes

    counts: Counter[str] = Counter()
    for name, shape in our_shapes(config).items():
        counts[name.split(".")[0]] += math.prod(shape)
    scale = counts.pop("logit_scale")
    return {**counts, "logit_scale": scale}


def describe(name: str) -> str:
    """A table of one preset: parameters by part, tokens and forward FLOPs of a sample by pass, FLOPs of a step."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}{nearest(name, list(PRESETS))} (expected {', '.join(PRESETS)})")
    from sycoca_ds.model.flops import forward_flops, passes, step_flops

    config = with_vocabulary(PRESETS[name].model, VOCABULARIES.get(name, TrainTokenizerCommand.vocab_size))
    image, text = config.image, config.text
    counts = parameters(config)
    lines = [
        f"{name}: {config.family}, {image.image_size} px, patches of {image.patch_size} px ({image.patches}), "
        f"captions of {text.context_length} tokens, vocabulary {text.vocab_size}"
    ]
    lines += [f"  parameters  {part:<46}{count:>16,}" for part, count in counts.items()]
    lines.append(f"  parameters  {'total':<46}{sum(counts.values()):>16,}")
    lines.append(f"  {'pass':<46}{'tokens':<28}GFLOP a sample, forward")
    lines += [f"  {f'{p.part}, {p.what}':<46}{p.tokens:<28}{p.forward / 1e9:>10,.3f}" for p in passes(config)]
    lines.append(f"  {'forward':<74}{forward_flops(config) / 1e9:>10,.3f}")
    for label, options in (
        ("training step", {}),
        ("training step, activation checkpointing", {"recompute": True}),
        ("training step, several micro-batches", {"accumulation_steps": 2}),
    ):
        lines.append(f"  {label:<74}{step_flops(config, **options) / 1e9:>10,.3f}")
    return "\n".join(lines)


@dataclass(frozen=True)
class ModelOptions:
    """Parameters by part, tokens and FLOPs by pass of presets, without allocating a weight."""

    presets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar=f"[{{{','.join(PRESETS)}}} ...]")] = tuple(
        PRESETS
    )
    """Which ones."""


def main() -> int:
    description = f"{ModelOptions.__doc__}\n\n{FORMULA}"
    options = parse_command(ModelOptions, sys.argv[1:], PROGRAM, description=description)
    print("\n\n".join([*(describe(name) for name in options.presets), FORMULA]))
    return 0
