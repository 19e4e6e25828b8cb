"""Which peak a device has, by the name that CUDA gives it."""

from __future__ import annotations

import math

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.engine.monitoring.peaks import check_peak, peak_tflops


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A40", 149.7),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA RTX A4000", None),
        ("Tesla V100-SXM2-32GB", None),
        ("", None),
    ],
)
def test_a_device_is_known_by_its_name_or_has_no_peak(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


@pytest.mark.parametrize("given", [0.0, -312.0, math.inf, math.nan])
def test_a_peak_that_no_device_has_is_refused(given: float) -> None:
    check_peak(None)
    check_peak(312.0)
    with pytest.raises(UserError, match="run.peak-tflops = .*: expected the bf16 TFLOP/s of one device"):
        check_peak(given)
