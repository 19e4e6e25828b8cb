"""What `run.compile = blocks` saves: launches of a block, and time of a step, beside the same without, in turns.

    python benchmarks/investigations/block_compile.py --preset small --batch-size 4

Launches are counted from the graphs, forward and backward: without a compiler every operation that is no view; with one the kernels
that it makes, the products that it calls, and attention's operations, which it leaves alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path[:1] = [str(Path(__file__).resolve().parents[2])]

from benchmarks import step_cost  # noqa: E402
from benchmarks.frame import Row, in_turns, lines, timed  # noqa: E402
from sycoca_ds.config import with_vocabulary  # noqa: E402
from sycoca_ds.model.layers.blocks import SelfBlock, compile_blocks  # noqa: E402
from sycoca_ds.presets import PRESETS  # noqa: E402


class Launches(TorchDispatchMode):
    """Counts operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, torch.Tensor)]
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        view = not function._schema.is_mutable and all(x.untyped_storage().data_ptr() in given for x in made)
        self.count += not view
        return out


KERNEL = re.compile(r"^ +(?:cpp_fused\w*|triton_\w+\.run|extern_kernels\.\w+)\(", re.MULTILINE)
"""A kernel that is made, or a product that is called, in what the compiler wrote."""


def launches(width: int, heads: int) -> tuple[int, int]:
    """Of one block, both passes: (without a compiler, with one)."""
    from torch._inductor.utils import run_and_get_code

    block, x = SelfBlock(width, heads), torch.randn(2, 50, width, requires_grad=True)
    with Launches() as whole:
        block(x).backward(x)
    qkv = torch.randn(2, 50, 3 * width, requires_grad=True)
    with Launches() as attention:
        block.attention.mix(qkv).backward(x)
    compile_blocks(block)
    code = run_and_get_code(lambda: block(x).backward(x))[1]
    return whole.count, attention.count + sum(len(KERNEL.findall(text[text.rindex("def call") :])) for text in code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="small")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    config = PRESETS[options.preset].model
    config = with_vocabulary(config, config.text.vocab_size or 8192)
    print("launches of a block without and with:", *launches(config.image.width, config.image.heads))
    batch, ways, losses = step_cost.inputs(config, options.batch_size, device), {}, {}
    for name in ("compiled", "as it is"):
        model = step_cost.build(config, device, precision, False)
        if name == "compiled":
            compile_blocks(model)
        ways[name] = timed(lambda model=model: step_cost.step(model, batch), device)
        ways[name]()
        with torch.no_grad():
            losses[name] = model("train", **batch)["loss"].item()
    turns = in_turns(ways, options.turns)
    what = f"{options.preset}, batch {options.batch_size}, {precision}, blocks compiled"
    row = Row("training", what, "samples/s", options.batch_size, turns["compiled"], {"as it is": turns["as it is"]})
    print(f"losses: {losses}\n" + "\n".join(lines(row.facts())))


if __name__ == "__main__":
    main()
