"""SyCoCa-DS: pretraining of SyCoCa (arXiv 2401.02137), CoCa and CLIP on DeepSpeed, from catalogue to tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sycoca_ds.inference.model import Model

__version__ = "0.1.0"


def load(path: str | Path, device: str = "auto", precision: str = "auto", *, ema: bool = False) -> Model:
    """A trained model to ask: `encode_image`, `encode_text`, `similarity`, `caption`, `reconstruct`, `attention`.

    Args:
        path: a run (its newest whole checkpoint), one step's folder, or a folder that `sycoca_ds/export.py` wrote.
        device: auto (cuda if there is one), cpu, cuda, cuda:1.
        precision: fp32, bf16 (autocast), or auto: bf16 on a GPU that has it, fp32 elsewhere.
        ema: the moving average of the weights, of a run with optim.ema-decay.

    Raises:
        data_pipeline.errors.UserError: nothing there, damaged, no such device; torch is not installed.
    """
    from data_pipeline.errors import in_the_environment

    def opened() -> Model:
        from sycoca_ds.inference.model import open_model

        return open_model(path, device, precision, ema=ema)

    return in_the_environment(opened)
