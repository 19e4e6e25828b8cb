"""Work, time and memory between two reports, recomputed by hand."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from sycoca_ds.config import ImageEncoderConfig, ModelConfig
from sycoca_ds.data.batch import Batch
from sycoca_ds.engine.monitoring.meters import Meter, batch_tflops, resident_gib
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.model.text_encoder import label_places
from tests.worlds.models.small_model import SMALL_MODEL

ALONE = Runtime(0, 0, 1, torch.device("cpu"), 1)
TEXT = torch.tensor([[1, 7, 8, 9, 2, 0, 0, 0], [1, 7, 2, 0, 0, 0, 0, 0]])
"""Padded to 8 tokens; 5 and 3 real ones, 4 and 2 labels."""


def batch(stand_ins: int = 0) -> Batch:
    pixels, sizes = torch.zeros(0, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64)
    return Batch(pixels, sizes, TEXT, label_places(TEXT, 2), torch.arange(2), stand_ins)


def test_flops_of_a_batch_by_hand() -> None:
    """CLIP of two layers each: 16 patches of 108 numbers and [CLS] at width 32, 4 tokens and [CLS] at width 32, E = 24. The
    captions have 5 and 3 real tokens; their padding is not computed.

    A multiply-add counts two, backward twice forward, causal attention half."""
    d, n, length = 32, 16, 4
    image = 2 * (24 * (n + 1) * d**2 + 4 * (n + 1) ** 2 * d) + 2 * n * 108 * d + 2 * d * 24
    text = 2 * (24 * (length + 1) * d**2 + 2 * (length + 1) ** 2 * d) + 2 * d * 24
    clip = replace(SMALL_MODEL, family="clip")
    assert batch_tflops(clip, TEXT) == pytest.approx(2 * 3 * (image + text) / 1e12, rel=1e-12)
    # a captioning decoder of two pairs on 17 - 1 patches for 3 positions, each with a label, a vocabulary of 50
    own = 24 * 3 * d**2 + 2 * 3**2 * d
    cross = 20 * 3 * d**2 + 4 * n * d * d + 4 * 3 * n * d
    decoder = 2 * (own + cross) + 2 * 3 * d * 50
    coca = replace(SMALL_MODEL, family="coca")
    assert batch_tflops(coca, TEXT) == pytest.approx(2 * 3 * (image + text + decoder) / 1e12, rel=1e-12)


def test_padding_is_no_work() -> None:
    longer = torch.cat([TEXT, torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    assert batch_tflops(SMALL_MODEL, TEXT) == batch_tflops(SMALL_MODEL, longer)
    words = TEXT.clone()
    words[1, 2:4] = torch.tensor([7, 2])
    assert batch_tflops(SMALL_MODEL, TEXT) < batch_tflops(SMALL_MODEL, words)
    many = ModelConfig(image=ImageEncoderConfig(), text=replace(ModelConfig().text, vocab_size=50))
    assert batch_tflops(many, TEXT.repeat(3, 1)) == pytest.approx(3 * batch_tflops(many, TEXT))


def test_a_report_has_means_sums_and_the_time_that_was_no_pause() -> None:
    meter = Meter(SMALL_MODEL, ALONE)
    start = time.perf_counter()
    for number in range(4):
        meter.add({"loss": torch.tensor(float(number)), "itc": torch.tensor(2.0 * number)})
        meter.count([batch(number)])
    began = time.perf_counter()
    with meter.waiting():
        time.sleep(0.05)
    waited = time.perf_counter() - began
    with meter.paused():
        time.sleep(1.0)
    report = meter.report()
    whole = time.perf_counter() - start
    assert report.means == {"loss": 1.5, "itc": 3.0} and report.stand_ins == 6
    assert report.tflops == pytest.approx(4 * batch_tflops(SMALL_MODEL, TEXT))
    assert 0.05 <= report.seconds <= whole - 1.0
    assert 0.05 <= report.data_wait * report.seconds * (1 + 1e-9) <= waited * (1 + 1e-6) and report.memory_gib == 0
    assert report.wait_W == [report.data_wait] and report.device_W == [0.0]
    assert meter.micro_batches == 0
    meter.add({"loss": torch.tensor(7.0)})
    second = meter.report()
    assert second.means == {"loss": 7.0} and second.stand_ins == 0 and second.tflops == 0
    assert second.seconds < 0.9, "the pause counts in no report"


def test_resident_memory_grows_by_what_is_touched() -> None:
    before = resident_gib()
    held = np.ones(2**25)  # 256 MiB
    assert resident_gib() - before == pytest.approx(0.25, abs=0.1)  # other pages of the process may be taken from it meanwhile
    assert held[0] == 1
