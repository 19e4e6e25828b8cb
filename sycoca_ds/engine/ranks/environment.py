"""What DeepSpeed, torch and the compilers they start must find in the environment, set in one place."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path


def own_tools_first() -> str:
    """PATH with the folder of this interpreter first, whether its environment is activated or not: there stands the ninja that
    compiled DeepSpeed's operators. To another version of it all of them are out of date."""
    own, given = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    return given if given.split(os.pathsep)[0] == own else f"{own}{os.pathsep}{given}"


def prepare_deepspeed() -> None:
    """What DeepSpeed has to find in the environment and in torch; called before its first import, which warns otherwise.

    That a machine without a GPU is meant to be one; what the processor is, once; no compiler of torch's before there is something
    to compile; this environment's tools; and compiled operators inside the virtual environment they belong to: in the home folder,
    torch's default, two environments would take turns compiling them anew.
    """
    import torch

    from sycoca_ds.engine.ranks.compiler import import_compiler_late

    import_compiler_late()
    with contextlib.suppress(ImportError):  # DeepSpeed then asks lscpu
        import cpuinfo

        # asked up to four times for each operator that is loaded, 1.3 s each
        cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
    os.environ["PATH"] = own_tools_first()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))
