"""What a model that is asked runs on, and in which precision."""

from __future__ import annotations

import torch

from data_pipeline.errors import UserError


def choose_device(name: str) -> torch.device:
    """`auto` is cuda if there is one. Raises `UserError` for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N ({str(error).splitlines()[0]})") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"--device {name}: this machine offers {torch.cuda.device_count()} CUDA devices to torch "
            f"{torch.__version__}; use --device auto"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """fp32 or bf16; `auto` is bf16 on a GPU that has it. Raises `UserError`."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in ("fp32", "bf16"):
        raise UserError(f"--precision {name}: expected auto, fp32 or bf16")
    return name
