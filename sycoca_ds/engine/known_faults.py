"""What DeepSpeed 0.19.8 is known to do wrong, refused by name and with the reason before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

LEAVES = (
    "it makes leaf modules: DeepSpeed 0.19.8 reduces the gradients of a leaf twice when it runs twice a step, as the image "
    "encoder's blocks do, and from some size on none of them reaches the optimizer"
)
NVME = "tensors on NVMe are not part of what a checkpoint here holds, and the model needs none"
BESIDE = "saves here are written beside the training anyway"
KNOWN_FAULTS = {
    "zero_optimization.leaf_module": LEAVES,
    "zero_optimization.stage3_module_granularity_threshold": LEAVES,
    "zero_optimization.module_granularity_threshold": LEAVES,
    "checkpoint.writer": (
        "what DeepSpeed 0.19.8's fast and decoupled writers save cannot be loaded with torch 2.6 and newer (its issue 8500); "
        + BESIDE
    ),
    "checkpoint.checkpoint_engine": BESIDE,
    "datastates_ckpt": "where its package is missing DeepSpeed takes another format with no more than a line in the log; " + BESIDE,
    "compile": "DeepCompile does not support ZeRO-3 on torch 2.9 and newer (DeepSpeed issue 7755) and grows in memory (7577)",
    "zero_optimization.zenflow": "it updates with late gradients, so the run is another one than the configuration says",
    "zero_optimization.zero_hpz_partition_size": "wrong results and hangs are open (DeepSpeed issues 5030, 6926, 7164)",
    "zero_optimization.offload_optimizer.device": NVME,
    "zero_optimization.offload_param.device": NVME,
    "zero_optimization.elastic_checkpoint": "ZeRO-3 does not know it; checkpoints here are resumed by any number of ranks",
}
CAN_BE_ALLOWED = ("zero_optimization.zero_hpz_partition_size",)
ALLOWED = "allow_known_faults"
"""Key of a policy file: a list of names that its author wants in spite of the reason."""
ABSENT = object()
OFF: dict[str, tuple[Any, ...]] = {
    "zero_optimization.leaf_module": (None, {}),
    "zero_optimization.stage3_module_granularity_threshold": (None, 0),
    "zero_optimization.module_granularity_threshold": (None, 0),
    "datastates_ckpt": (False,),  # anything else turns it on, null and an empty section included
    "compile": (None, {}),
    "zero_optimization.zero_hpz_partition_size": (None, 1),
    "zero_optimization.offload_optimizer.device": (None, "none", "cpu"),
    "zero_optimization.offload_param.device": (None, "none", "cpu"),
    "zero_optimization.elastic_checkpoint": (None, False),
}
"""Values that leave a thing off, and nothing else does; of what is not named here null. An empty section of others is all their
defaults, and in Python True is 1."""


def refuse_known_faults(policy: dict[str, Any], path: Path) -> None:
    """Raises `UserError` for the first setting of a policy that is known to be wrong, naming file, key and reason."""
    for name, reason in KNOWN_FAULTS.items():
        value: Any = policy
        for key in name.split("."):
            value = value.get(key, ABSENT) if isinstance(value, dict) else ABSENT
        off = value is ABSENT or any(type(value) is type(one) and value == one for one in OFF.get(name, (None,)))
        allowed = name in CAN_BE_ALLOWED and name in policy.get(ALLOWED, [])
        if not off and not allowed:
            way = f'; to use it all the same, name it in "{ALLOWED}"' if name in CAN_BE_ALLOWED else ""
            raise UserError(f"{path}: {name} must be left out: {reason}{way}")
