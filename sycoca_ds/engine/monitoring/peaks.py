"""What devices could compute at most. Imports no torch: the planner reads it too."""

from __future__ import annotations

import math
import re

from data_pipeline.errors import UserError

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "H800 PCIe": 756.5,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090$": 165.2,
    "RTX 3090$": 71.0,
}
"""bf16 TFLOP/s of a device, dense, summing in float32, as its data sheet says; by words of the name that CUDA gives it ("$": its
last). A name that is not listed has no peak: `run.peak-tflops`."""


def peak_tflops(name: str) -> float | None:
    """The peak of a device by its name; of several entries that fit, the longest."""
    fitting = [key for key in PEAK_TFLOPS if re.search(rf"\b{key}(?!\w)", name)]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def check_peak(given: float | None) -> None:
    """Raises `UserError` for a peak that no device has."""
    if given is not None and not 0 < given < math.inf:
        raise UserError(f"run.peak-tflops = {given}: expected the bf16 TFLOP/s of one device, above 0 (an A100: 312), or None")
