"""`python -m sycoca_ds.model PRESET...`: parameters by part and FLOPs, without allocating a weight."""

from __future__ import annotations

import argparse
import sys

import torch

from data_pipeline.errors import UserError, run_command
from sycoca_ds.model.flops import forward_flops
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import nearest
from sycoca_ds.presets import PRESETS


def describe(name: str) -> str:
    """A table of one preset: parameters by part, tokens by pass, forward FLOPs of a sample by part."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}{nearest(name, list(PRESETS))} (expected {', '.join(PRESETS)})")
    config = PRESETS[name].model
    with torch.device("meta"):
        model = SyCoCa(config, seed=None)
    parts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    parts["logit_scale"] = model.logit_scale.numel()
    flops = forward_flops(config)
    image, text = config.image, config.text
    lines = [
        f"{name}: {config.family}, {image.image_size} px, patches of {image.patch_size} px ({image.patches}), "
        f"captions of {text.context_length} tokens, vocabulary {text.vocab_size}"
    ]
    lines += [f"  parameters  {part:<30}{count:>15,}" for part, count in parts.items()]
    lines.append(f"  parameters  {'total':<30}{sum(parts.values()):>15,}")
    lines += [f"  forward     {part:<30}{count / 1e9:>15,.3f} GFLOP a sample" for part, count in flops.items()]
    total = sum(flops.values())
    lines.append(f"  forward     {'total':<30}{total / 1e9:>15,.3f} GFLOP a sample; a training step is 3 x that")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sycoca_ds.model", description=__doc__)
    parser.add_argument("preset", nargs="*", default=list(PRESETS), help=f"default: all of {', '.join(PRESETS)}")
    print("\n\n".join(describe(name) for name in parser.parse_args().preset))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
