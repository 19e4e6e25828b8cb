"""What the gradient's norm by part costs at a step that reports it, under every ZeRO stage.

    deepspeed --num_accelerators 2 benchmarks/investigations/gradient_norms.py
    deepspeed --num_accelerators 2 benchmarks/investigations/gradient_norms.py --preset small --batch-size 2

Times, in turns within each step: the step itself (forward, backward, update), `GradientNorms.measure` with `read` between backward
and update, and in its place DeepSpeed's public way, `safe_get_full_grad` of every parameter. Medians of rank 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402

from sycoca_ds.config import with_vocabulary  # noqa: E402
from sycoca_ds.engine.monitoring.gradients import GradientNorms  # noqa: E402
from sycoca_ds.engine.policy import build_engine, build_optimizer, read_policy  # noqa: E402
from sycoca_ds.engine.ranks.environment import prepare_deepspeed  # noqa: E402
from sycoca_ds.engine.ranks.runtime import Runtime, start_runtime  # noqa: E402
from sycoca_ds.model.sycoca import SyCoCa  # noqa: E402
from sycoca_ds.presets import PRESETS  # noqa: E402
from sycoca_ds.train import end_process  # noqa: E402


def measured(runtime: Runtime, stage: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """Median seconds of (a step, our norms, the public way) at one stage."""
    from deepspeed.utils import safe_get_full_grad

    preset = PRESETS[options.preset]
    config = with_vocabulary(preset.model, 512)
    model = SyCoCa(config, seed=0)
    sizes = {"train_micro_batch_size_per_gpu": options.batch_size, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    policy = {**read_policy(f"ds_configs/zero{stage}.json"), **sizes, "bf16": {"enabled": options.bf16 and stage > 0}}
    engine = build_engine(model, build_optimizer(model, preset.optim, False, stage), policy)
    torch.manual_seed(runtime.rank)
    side, length = config.image.image_size, config.text.context_length
    text_BL = torch.randint(3, 512, (options.batch_size, length), device=runtime.device)
    text_BL[:, 0], text_BL[:, -1] = config.text.sot_id, config.text.eot_id
    image_BCHW = torch.randn(options.batch_size, 3, side, side, device=runtime.device)
    norms, spent = GradientNorms(runtime), ([], [], [])

    def timed(kind: int, what: Callable[[], object]) -> None:
        runtime.barrier()
        start = time.perf_counter()
        what()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        spent[kind].append(time.perf_counter() - start)

    for _ in range(options.steps + 3):
        timed(0, lambda: engine.backward(engine("train", image_BCHW=image_BCHW, text_BL=text_BL)["loss"]))
        timed(1, lambda: (norms.measure(engine), norms.read()))
        timed(2, lambda: [safe_get_full_grad(p).norm() for p in engine.module.parameters()])
        forward_backward = spent[0].pop()
        timed(0, engine.step)
        spent[0][-1] += forward_backward
    engine.destroy()
    return tuple(statistics.median(times[3:]) for times in spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a rank")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bf16", action="store_true", help="stages 1 to 3 in bf16")
    parser.add_argument("--local_rank", help="of the launcher")
    options = parser.parse_args()
    prepare_deepspeed()
    runtime = start_runtime()
    runtime.say(f"{'stage':>5} {'a step, ms':>11} {'norms by part, ms':>18} {'of a step':>10} {'safe_get_full_grad, ms':>23}")
    for stage in range(4):
        step, own, public = (1000 * seconds for seconds in measured(runtime, stage, options))
        runtime.say(f"{stage:>5} {step:>11.1f} {own:>18.2f} {100 * own / step:>8.2f} % {public:>23.1f}")
    runtime.leave()


if __name__ == "__main__":
    main()
    end_process(0)
