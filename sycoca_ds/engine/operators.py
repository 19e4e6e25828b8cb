"""`python -m sycoca_ds.engine.operators`: compiles the DeepSpeed operators this project uses, before anything waits for them.

On a CPU these are the shared-memory collectives, which DeepSpeed builds when a process group starts, and the CPU Adam of
`zero3_offload`. They land in torch's extension cache, about 45 s each; a second run finds them there.
"""

from __future__ import annotations

import shutil
import sys

from data_pipeline.errors import UserError, run_command


def build_operators() -> list[str]:
    """Builds and loads the operators; returns their names.

    Raises:
        UserError: no C++ compiler, or no ninja on PATH.
    """
    for tool, package in (("c++", "g++"), ("ninja", "ninja")):
        if shutil.which(tool) is None:
            raise UserError(
                f"{tool} was not found on PATH: DeepSpeed compiles its operators with it; install the package {package}"
            )
    from sycoca_ds.engine.runtime import choose_accelerator

    choose_accelerator()
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder import CPUAdamBuilder

    builders = [CPUAdamBuilder()]
    if get_accelerator().device_name() == "cpu":
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        builders.append(ShareMemCommBuilder())
    for builder in builders:
        builder.load(verbose=False)
    return [builder.NAME for builder in builders]


def main() -> int:
    print("DeepSpeed operators ready:", ", ".join(build_operators()))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
