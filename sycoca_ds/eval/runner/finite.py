"""What every number of an evaluation rests on: answers of the model that are numbers."""

from __future__ import annotations

from typing import Any

import torch

from data_pipeline.errors import UserError


def check_finite(value: Any, what: str) -> None:
    """
    Args:
        value: a tensor, or tensors by name; those of whole numbers and of truth values pass.

    Raises:
        UserError: NaN or infinite; every comparison with NaN is false, so that a rank made of it would be the first.
    """
    for tensor in value.values() if isinstance(value, dict) else (value,):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{what} are not finite: the checkpoint is damaged or diverged; take an earlier one")
