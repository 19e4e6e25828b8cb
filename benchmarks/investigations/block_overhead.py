"""What a block costs the host however little it computes: `python benchmarks/investigations/block_overhead.py`

Forward and backward of models 8 wide on one sample, so that time goes to Python, autograd and dispatch alone, per transformer block
of the training step; on the bare model and under DeepSpeed's ZeRO-3 (one rank), with and without recomputation. A GPU's step cannot
be shorter than its host needs to queue it: `--block-ms` of the planner (docs/planning.md).
"""

from __future__ import annotations

import time

import torch

from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, ModelConfig, OptimConfig, TextEncoderConfig
from sycoca_ds.engine.ranks.environment import prepare_deepspeed
from sycoca_ds.model.sycoca import SyCoCa

LAYERS, TURNS = 12, 8
BLOCKS = LAYERS * 7
"""Image encoder twice, text encoder, two decoders of two blocks a layer."""
NARROW = {"width": 8, "heads": 1}
MODEL = ModelConfig(
    embed_dim=8,
    image=ImageEncoderConfig(image_size=8, patch_size=4, layers=LAYERS, **NARROW),
    text=TextEncoderConfig(context_length=4, vocab_size=16, layers=LAYERS, **NARROW),
    text_decoder=DecoderConfig(layers=LAYERS, **NARROW),
    image_decoder=DecoderConfig(layers=LAYERS, **NARROW),
)


def fastest(work, after=lambda: None) -> float:
    """Processor seconds of the fastest of many turns, which other programs hardly lengthen; what comes after each is left out."""
    found = []
    for _ in range(TURNS):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
        after()
    return min(found)


def main() -> None:
    torch.set_num_threads(1)
    prepare_deepspeed()
    import deepspeed

    from sycoca_ds.engine.policy import build_engine, build_optimizer, read_policy
    from sycoca_ds.engine.ranks.runtime import start_runtime

    runtime = start_runtime()
    torch.set_num_threads(1)
    batch = {"image_BCHW": torch.randn(1, 3, 8, 8), "text_BL": torch.tensor([[1, 3, 4, 2]]), "key_B": torch.arange(1)}
    print(f"ms a block, forward and backward, {BLOCKS} blocks, torch {torch.__version__}, deepspeed {deepspeed.__version__}")
    for recompute in (False, True):
        model = SyCoCa(MODEL, seed=0).train()
        model.set_activation_checkpointing(recompute)
        bare = fastest(lambda model=model: model("train", **batch)["loss"].backward())
        sizes = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        policy = {**read_policy("ds_configs/zero3.json"), **sizes, "bf16": {"enabled": False}}
        engine = build_engine(model, build_optimizer(model, OptimConfig(), False, stage=3), policy)

        zero3 = fastest(lambda engine=engine: engine.backward(engine("train", **batch)["loss"]), engine.step)
        engine.destroy()
        print(f"{'recomputed' if recompute else 'kept':<12}bare {1e3 * bare / BLOCKS:6.2f}   ZeRO-3 {1e3 * zero3 / BLOCKS:6.2f}")
    runtime.leave()


if __name__ == "__main__":
    main()
