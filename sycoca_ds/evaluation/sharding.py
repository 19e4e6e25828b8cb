"""A model whose weights the ranks share: each holds a part of every parameter, and a module's are whole while it computes.

DeepSpeed's ZeRO-3 without an optimizer. What it computes is what the whole model computes, bit for bit; every rank has to call it
as often, with the same task, which the evaluation's `Team` sees to.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from functools import partial
from typing import Any

import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import LossConfig, ModelConfig
from sycoca_ds.engine.checkpoint import weights
from sycoca_ds.engine.checkpoint.weights import Loaded, Stored, loaded, open_weights
from sycoca_ds.engine.master_weights import NOTHING, Share
from sycoca_ds.eval.runner.bench import fresh_model
from sycoca_ds.eval.runner.team import Team
from sycoca_ds.model.layers.initialise import initialise
from sycoca_ds.model.shapes import our_shapes
from sycoca_ds.model.sycoca import SyCoCa

CHOICES = ("auto", "yes", "no")
WHOLE_SHARE, WHOLE_NUMBERS = 16, 100_000_000
"""Weights that a rank holds whole at once, in or before their turn: one in so many, at most so many (0.4 GB)."""
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 1 << 18
"""glibc's number of that option, and from how many bytes on a piece is large."""
SMALL_NUMBERS = 100_000
"""Parameters that small stay whole everywhere: DeepSpeed's own default."""
SHARE_OF_MEMORY = 0.8
"""Of what is free, that weights may take; the rest is for what a batch needs."""


def policy(numbers: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a model of so many weights."""
    whole = min(WHOLE_NUMBERS, numbers // WHOLE_SHARE)
    zero = {
        "stage": 3,
        "memory_efficient_linear": False,  # it would replace torch's linear in the whole process
        "stage3_max_live_parameters": whole,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": whole // 2,
        "stage3_param_persistence_threshold": SMALL_NUMBERS,
    }
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}


def open_checkpoint(checkpoint: Any, device: torch.device, team: Team, *, ema: bool, shard: str) -> Loaded:
    """On every rank: a checkpoint's model, whole, or a part of it.

    Args:
        shard: yes, no, or auto: where a rank has no room for all of it. One rank alone holds it whole.

    Raises:
        UserError: as of `open_weights`; no such choice, or `yes` of a rank alone.
    """
    if shard not in CHOICES:
        raise UserError(f"--shard-weights {shard}: expected {', '.join(CHOICES)}")
    if team.size == 1:
        if shard == "yes":
            raise UserError("--shard-weights yes: one process has nobody to share with; start several by deepspeed or torchrun")
        return weights.load_for_inference(checkpoint, device, ema=ema)
    with team.together():
        found = open_weights(checkpoint, ema=ema, share=NOTHING)
    if shard == "no" or (shard == "auto" and team.all(fits(found.config.model, device))):
        with team.together():
            return weights.load_for_inference(found.folder, device, ema=ema)
    if team.leads:
        print(f"weights: shared among {team.size} ranks", flush=True)
    team.lockstep = True
    if device.type == "cpu":
        give_memory_back()
    with team.together():
        stored = open_weights(found.folder, ema=ema, share=Share(team.rank, team.size))
    return loaded(stored, sharded(stored))


def fits(config: ModelConfig, device: torch.device) -> bool:
    """Whether this rank has room for all weights twice, in float32: the checkpoint's, and the untrained ones beside it."""
    from sycoca_ds.engine.ranks.host_memory import SPARE_MEMORY, available

    needed = 2 * 4 * weights_of(config)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
        free = max(0, available() - SPARE_MEMORY) // here
    return needed <= SHARE_OF_MEMORY * free


def weights_of(config: ModelConfig) -> int:
    return sum(map(math.prod, our_shapes(config).values()))


def sharded(stored: Stored) -> SyCoCa:
    """On every rank, of its own share of the weights."""
    model = _parted(stored.config.model, stored.config.loss)
    for name, parameter in model.named_parameters():
        own = stored.weights.pop(name)
        parameter.ds_tensor[: len(own)].copy_(own)
    return _ready(model)


def fresh_sharded(config: ModelConfig, seed: int) -> SyCoCa:
    """On every rank: untrained weights, those that the seed gives a whole model."""
    import deepspeed

    model = _parted(config, None)
    initialise(model, config.init_std, seed, whole=partial(deepspeed.zero.GatheredParameters, modifier_rank=0))
    return _ready(model).eval()


def fresh_weights(team: Team, config: ModelConfig, seed: int) -> torch.nn.Module:
    """Untrained weights, shared where the checkpoint's are."""
    return fresh_sharded(config, seed) if team.lockstep else fresh_model(config, seed)


def give_memory_back() -> None:
    """From now on glibc gives large pieces back when they are let go. By itself it takes ever larger ones out of its heap, where
    weights that come and go leave holes: a rank would hold as much as without sharing."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _parted(config: ModelConfig, loss: LossConfig | None) -> SyCoCa:
    """Parameters are parted module by module as they are made. No `dtype`: given one, DeepSpeed 0.19.8 takes another on CPUs."""
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=policy(weights_of(config))):
        return SyCoCa(config, loss, seed=None)


def _ready(model: SyCoCa) -> SyCoCa:
    """With DeepSpeed's hooks, which gather and let go."""
    import deepspeed
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    from sycoca_ds.engine.policy import build_engine

    model.requires_grad_(False)
    build_engine(model, None, policy(weights_of(model.config)))  # the hooks hold what they need
    FWD_MODULE_STACK.pop()  # it would hold the model for as long as the process lives
    with deepspeed.zero.GatheredParameters([model.logit_scale]):
        model.whole_logit_scale = float(model.logit_scale.detach())  # rank 0 reads it alone
    return model
