"""DeepSpeed's configuration: the policy file says how to shard, the run configuration says how much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from sycoca_ds.config import OptimConfig, TrainConfig
from sycoca_ds.engine.batches import BatchPlan
from sycoca_ds.engine.known_faults import ALLOWED, KNOWN_FAULTS, refuse_known_faults
from sycoca_ds.options import read_json_object

if TYPE_CHECKING:
    import torch

PACKAGE = Path(__file__).resolve().parents[1]
FLAT_MULTIPLE = 64
"""Weights of that many numbers, or a multiple, keep what follows them at 128 bytes in bf16."""
FLAT_ORDER = 2
"""Order of the weights in a group as ZeRO lays them, written into checkpoints: 1 was the model's own."""

POLICY_KEYS = (
    "bf16",
    "data_types",
    "communication_data_type",
    "zero_optimization",
    "checkpoint",
    "wall_clock_breakdown",
    "comms_logger",
    "flops_profiler",
    "prescale_gradients",
    "gradient_predivide_factor",
    ALLOWED,
)
OWNED_ELSEWHERE = {
    "train_batch_size": "optim.global-batch-size",
    "train_micro_batch_size_per_gpu": "optim.global-batch-size, accumulation and the world size",
    "gradient_accumulation_steps": "optim.accumulation-steps",
    "gradient_clipping": "optim.grad-clip",
    "optimizer": "the optim section",
    "scheduler": "optim.warmup-steps and optim.steps",
    "tensorboard": "run.out and run.log-every",
    "activation_checkpointing": "run.activation-checkpointing (DeepSpeed's own drops gradients of blocks that run twice a step)",
    "fp16": "run.precision (bf16 or fp32)",
    "elasticity": "nothing: DeepSpeed removed it",
}


def find_policy(name: str) -> Path:
    """The policy file, relative to the current folder, else to the repository, else among those installed with the package.

    Raises:
        UserError: in none of these places.
    """
    for path in (Path(name), PACKAGE.parent / name, PACKAGE / name):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(f"ds_configs/{path.name}" for path in (PACKAGE / "ds_configs").glob("*.json")))
    raise UserError(f"run.ds-config = {name}: no such file (shipped: {shipped})")


def known_sections(name: str) -> tuple[Path, dict[str, Any]]:
    """(the policy file, its content), as far as it can be checked without DeepSpeed.

    Raises:
        UserError: there is none, a section that is none, or one that another place owns and the file sets to a number.
    """
    path = find_policy(name)
    policy = read_json_object(path, "run.ds-config")
    for key, value in policy.items():
        if key in OWNED_ELSEWHERE:
            if value != "auto":
                raise UserError(
                    f'{path}: {key} = {value!r} is owned by {OWNED_ELSEWHERE[key]}: set it there, and write "auto" or nothing here'
                )
        elif key not in POLICY_KEYS and key not in KNOWN_FAULTS:
            raise UserError(f"{path}: unknown key {key!r}{nearest(key, list(POLICY_KEYS))} (expected {', '.join(POLICY_KEYS)})")
    zero = policy.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"{path}: zero_optimization = {zero!r}: expected a section, as in ds_configs/zero3.json")
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:  # DeepSpeed takes "3" and true, too
        raise UserError(f"{path}: zero_optimization.stage = {stage!r}: expected 0, 1, 2 or 3")
    return path, policy


def read_policy(name: str) -> dict[str, Any]:
    """The policy file's keys without the "auto" sizes.

    Raises:
        UserError: a key that DeepSpeed does not know, or one that another place owns and the file sets to a number.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    path, policy = known_sections(name)
    zero = policy.get("zero_optimization", {})
    known = [name for key, field in DeepSpeedZeroConfig.model_fields.items() for name in (key, field.alias) if name]
    for key in zero:
        if key not in known:
            raise UserError(f"{path}: unknown key 'zero_optimization.{key}'{nearest(key, known)}")
    refuse_known_faults(policy, path)
    if zero.get("memory_efficient_linear", True) and zero.get("stage") == 3:
        raise UserError(
            f"{path}: zero_optimization.memory_efficient_linear must be false: its default replaces torch's linear "
            "for the whole process and doubles the rounding error of bf16 gradients"
        )
    kept = {key: value for key, value in policy.items() if key not in OWNED_ELSEWHERE and key != ALLOWED}
    return {**kept, "zero_optimization": {"stage": 0, **zero}}


def check_precision(policy: dict[str, Any], config: TrainConfig) -> None:
    """Raises `UserError` for bf16 without ZeRO, where DeepSpeed 0.19.8 keeps no float32 weights and gradients."""
    if config.run.precision == "bf16" and policy["zero_optimization"]["stage"] == 0:
        raise UserError(
            f"run.precision = bf16 with {config.run.ds_config}, which is ZeRO stage 0: DeepSpeed keeps no float32 weights there; "
            "use ds_configs/zero1.json (with one rank the same thing), or run.precision fp32"
        )


def deepspeed_config(policy: dict[str, Any], config: TrainConfig, batches: BatchPlan) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`: the policy with the run's sizes. The precision must be resolved already."""
    return {
        **policy,
        "train_batch_size": batches.global_batch_size,
        "train_micro_batch_size_per_gpu": batches.micro_batch_size,
        "gradient_accumulation_steps": batches.accumulation_steps,
        "gradient_clipping": config.optim.grad_clip,
        "bf16": {**policy.get("bf16", {}), "enabled": config.run.precision == "bf16"},
    }


def build_optimizer(model: torch.nn.Module, optim: OptimConfig, offload: bool, stage: int) -> torch.optim.Optimizer:
    """AdamW in two groups: matrices and embeddings decay; norms, biases, single vectors and the logit scale do not.

    ZeRO (stage above 0) lays the weights of a group end to end. Behind the logit scale, one number, all others began off the bounds
    that matrix products need: a linear layer whose bias begins one number too late takes 7.6 times as long on an H100
    (benchmarks/results/2026-11-27_gpu_h100.md). So there those of odd sizes come last.
    """
    import torch  # here: the planner reads policies without it

    ordered = list(model.parameters())
    if stage > 0:
        ordered.sort(key=lambda parameter: parameter.numel() % FLAT_MULTIPLE != 0)
    decayed = [p for p in ordered if p.ndim >= 2]
    others = [p for p in ordered if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, adamw_mode=True)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def build_engine(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine of a model, with what is done otherwise here under ZeRO-3; the one place that makes one.

    Args:
        config: of `deepspeed_config`, or another dict of DeepSpeed's.

    Raises:
        UserError: of `check_weights`.
    """
    import deepspeed

    from sycoca_ds.engine.ranks.compiler import import_muon
    from sycoca_ds.engine.zero3.blocks import gather_whole_blocks
    from sycoca_ds.engine.zero3.release import release_in_one_pass
    from sycoca_ds.engine.zero3.upkeep import ask_less, gather_small_weights_at_once

    import_muon()
    for way in (ask_less, release_in_one_pass, gather_whole_blocks):
        way()
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    gather_small_weights_at_once(engine)
    check_weights(model, config)
    return engine


def check_weights(model: torch.nn.Module, config: dict[str, Any]) -> None:
    """Raises `UserError` if the weights of an engine do not compute in the precision that its configuration says: products take the
    type of their weights, and a step in float32 in place of bf16 takes a GPU at least twice as long, without another sign."""
    import torch

    precision, expected = ("bf16", torch.bfloat16) if config.get("bf16", {}).get("enabled") is True else ("fp32", torch.float32)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    wrong = [name for name, dtype in types.items() if dtype != expected]
    if wrong:
        raise UserError(
            f"run.precision = {precision}, and {len(wrong)} of {len(types)} weights compute in another type ({wrong[0]}: "
            f"{types[wrong[0]]}): expected {expected} for all; a module that was changed makes them so, or another DeepSpeed than "
            "pyproject.toml names"
        )
