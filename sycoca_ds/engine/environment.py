"""What DeepSpeed, torch and the compilers they start must find in the environment, set in one place."""

from __future__ import annotations

import os
import sys

import torch


def prepare_deepspeed() -> None:
    """What DeepSpeed has to find in the environment; called before its first import, which warns otherwise.

    That a machine without a GPU is meant to be one; and compiled operators inside the virtual environment they belong to: in the
    home folder, torch's default, two environments would take turns compiling them anew.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))
