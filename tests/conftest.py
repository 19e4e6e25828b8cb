"""Shared by the trainer's tests: tiny models, and small data set folders written as the data pipeline writes them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, MaskingConfig, ModelConfig, TextEncoderConfig
from sycoca_ds.model.sycoca import SyCoCa

torch.set_num_threads(1)  # models this small lose time to thread hand-over, and test processes share the cores

for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]  # all servers of the tests are on loopback

SMALL_MODEL = ModelConfig(
    embed_dim=24,
    image=ImageEncoderConfig(image_size=24, patch_size=6, layers=2, width=32, heads=2),
    text=TextEncoderConfig(context_length=12, vocab_size=50, layers=2, width=32, heads=2),
    text_decoder=DecoderConfig(layers=2, width=32, heads=2),
    image_decoder=DecoderConfig(layers=2, width=32, heads=2),
    init_std=0.1,  # at 0.01 a two-layer model's outputs hardly depend on its inputs and every comparison would pass
)


def small_model(family: str = "sycoca", **masking) -> SyCoCa:
    """A model of 60,000 parameters in float32 with fixed weights."""
    config = dataclasses.replace(SMALL_MODEL, family=family, masking=MaskingConfig(**masking))
    return SyCoCa(config, seed=1).eval()


def random_inputs(batch: int = 4, lengths: tuple[int, ...] = (12, 5, 8, 3), seed: int = 0) -> dict[str, torch.Tensor]:
    """Normalised images and captions `[SOT] words [EOT] pads` of the given lengths for `SMALL_MODEL`."""
    generator = torch.Generator().manual_seed(seed)
    text_BL = torch.randint(3, 50, (batch, 12), generator=generator)
    for row, length in zip(text_BL, lengths, strict=True):
        row[0], row[length - 1], row[length:] = 1, 2, 0
    return {
        "image_BCHW": torch.randn(batch, 3, 24, 24, generator=generator),
        "text_BL": text_BL,
        "key_B": torch.arange(batch) + 100 * seed,
    }


WORDS = ("red", "green", "blue", "white", "black", "small", "large", "round", "square", "on", "under", "beside")


def write_data_set(folder: Path, samples_per_shard: list[int], seed: int = 0, side: int = 32) -> Path:
    """A data set folder with real tars of real JPEGs, verified by the pipeline's own `verify`, and a tokenizer trained on it.

    The captions name the colours of the picture's halves, so that there is something to learn.
    """
    import cv2

    from data_pipeline.shards.verify import verify
    from data_pipeline.tokenizer.bpe import train as train_tokenizer

    random = np.random.default_rng(seed)
    colours = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200), "white": (240, 240, 240), "black": (10, 10, 10)}
    (folder / "shards").mkdir(parents=True)
    count = 0
    for number, size in enumerate(samples_per_shard):
        with tarfile.open(folder / "shards" / f"{number:05d}.tar", "w") as tar:
            for place in range(size):
                left, right = random.choice(list(colours), 2)
                picture = np.empty((side, side, 3), np.uint8)
                picture[:, : side // 2], picture[:, side // 2 :] = colours[left], colours[right]
                picture[random.integers(side - 6) :][:4] = random.integers(0, 255, 3)
                caption = " ".join([left, "beside", right, *random.choice(WORDS, random.integers(0, 6))])
                jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
                facts = {
                    "uid": f"{count:016x}",
                    "url": f"http://example.org/{seed}/{count}.jpg",
                    "caption": caption,
                    "width": side,
                    "height": side,
                    "status": "success",
                }
                for suffix, data in (("jpg", jpeg), ("txt", caption.encode()), ("json", json.dumps(facts).encode())):
                    member = tarfile.TarInfo(f"{number:05d}{place:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count += 1
    verify(folder, processes=1)
    train_tokenizer(folder, folder / "tokenizer.json", vocab_size=320)
    return folder


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 samples in five unequal shards."""
    return write_data_set(tmp_path_factory.mktemp("data") / "train", [31, 7, 25, 1, 32])
