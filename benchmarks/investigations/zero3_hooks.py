r"""What ZeRO-3 costs the host beside ZeRO-1, on models that compute next to nothing.

    python benchmarks/investigations/zero3_hooks.py
    deepspeed --num_accelerators 2 benchmarks/investigations/zero3_hooks.py --model tiny --precision fp32 --batch-size 4 \
        --recompute 0
    python benchmarks/investigations/zero3_hooks.py --plain          # ZeRO-3 as DeepSpeed has it

`deep` has the layers of 930m, 64 wide. Processor seconds of rank 0's main thread, which other programs lengthen little: medians and
the least of the turns, forward and backward and then the update; and how often DeepSpeed is asked for a module's weights in a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:1] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402

from sycoca_ds.config import ModelConfig, with_vocabulary  # noqa: E402
from sycoca_ds.engine.policy import build_engine, build_optimizer, read_policy  # noqa: E402
from sycoca_ds.engine.ranks.environment import prepare_deepspeed  # noqa: E402
from sycoca_ds.engine.ranks.runtime import start_runtime  # noqa: E402
from sycoca_ds.model.sycoca import SyCoCa  # noqa: E402
from sycoca_ds.presets import PRESETS  # noqa: E402
from sycoca_ds.train import end_process  # noqa: E402

WARM_UP = 4
"""Steps that are not counted: stage 3 learns the order of modules."""
VOCABULARY = 512


def model_config(name: str) -> ModelConfig:
    model = PRESETS["930m" if name == "deep" else name].model
    if name == "deep":
        narrow = {"width": 64, "heads": 2}
        parts = {part: dataclasses.replace(getattr(model, part), **narrow) for part in ("text_decoder", "image_decoder")}
        parts["image"] = dataclasses.replace(model.image, image_size=56, **narrow)
        parts["text"] = dataclasses.replace(model.text, context_length=20, **narrow)
        model = dataclasses.replace(model, embed_dim=64, **parts)
    return with_vocabulary(model, VOCABULARY, (1, 2))


def inputs(model: ModelConfig, count: int, rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    text_BL = torch.randint(3, VOCABULARY, (count, model.text.context_length), generator=generator)
    text_BL[:, 0], text_BL[:, -1] = model.text.sot_id, model.text.eot_id
    side = model.image.image_size
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return {"image_BCHW": pixels, "text_BL": text_BL, "key_B": torch.arange(count)}


def engine_of(options: argparse.Namespace, stage: int, recompute: int) -> Any:
    preset = PRESETS["930m" if options.model == "deep" else options.model]
    model = SyCoCa(model_config(options.model), seed=0).train()
    model.set_activation_checkpointing(recompute)
    sizes = {"train_micro_batch_size_per_gpu": options.batch_size, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    policy = {**read_policy(f"ds_configs/zero{stage}.json"), **sizes, "bf16": {"enabled": options.precision == "bf16"}}
    optimizer = build_optimizer(model, preset.optim, False, stage)
    if not options.plain:
        return build_engine(model, optimizer, policy)
    import deepspeed

    from sycoca_ds.engine.zero3.release import release_in_one_pass

    release_in_one_pass()
    return deepspeed.initialize(model=model, optimizer=optimizer, config=policy)[0]


def measure(options: argparse.Namespace, engine: Any, batch: dict[str, torch.Tensor], barrier: Any) -> str:
    asked, passes, updates = 0, [], []
    if engine.zero_optimization_stage() == 3:
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        fetch = coordinator.fetch_sub_module

        def counted(module: torch.nn.Module, forward: bool) -> None:
            nonlocal asked
            asked += 1
            fetch(module, forward)

        coordinator.fetch_sub_module = counted
    for turn in range(WARM_UP + options.turns):
        barrier()
        asked, begin = 0, time.thread_time()
        engine.backward(engine("train", **batch)["loss"])
        between = time.thread_time()
        engine.step()
        if turn >= WARM_UP:
            passes.append(between - begin)
            updates.append(time.thread_time() - between)
    steps = [one + other for one, other in zip(passes, updates, strict=True)]
    named = {"passes": passes, "update": updates, "step": steps}
    told = [f"{what} {statistics.median(values):.3f} (least {min(values):.3f})" for what, values in named.items()]
    return f"{', '.join(told)} s" + (f", asked {asked} times" if asked else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deep", choices=["deep", *PRESETS])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--recompute", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--batch-size", type=int, default=2, help="pairs a rank")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare_deepspeed()
    runtime = start_runtime()
    torch.set_num_threads(1)
    batch = inputs(model_config(options.model), options.batch_size, runtime.rank)
    for recompute in options.recompute:
        for stage in options.stages:
            engine = engine_of(options, stage, recompute)
            said = measure(options, engine, batch, runtime.barrier)
            runtime.say(f"{options.model}, {'recomputed' if recompute else 'kept'}, ZeRO-{stage}: {said}")
            engine.destroy()
    runtime.leave()
    end_process(0)


if __name__ == "__main__":
    main()
