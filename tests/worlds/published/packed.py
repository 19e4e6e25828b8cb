"""CIFAR's pickles, STL-10's binary files, MNIST's idx: many pictures a file."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_cifar10(root: Path, each: int = 3) -> Path:
    """Five files to train with, written as Python 2 did: keys and texts are bytes."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")):
        labels = [(number + 4 * k) % 10 for k in range(each)]
        content = {b"batch_label": b"a batch", b"labels": labels, b"data": noise(number, each, 3072), b"filenames": [b"x"] * each}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names, b"num_vis": 3072}, protocol=2))
    return folder


def write_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        content = {b"fine_labels": [99, 0, 7], b"coarse_labels": [1, 1, 2], b"data": noise(10 + seed, 3, 3072)}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    fine = [f"kind_{k}".encode() for k in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": fine, b"coarse_label_names": [b"a"]}, protocol=2))
    return folder


def write_stl10(root: Path) -> Path:
    """Columns first, labels from 1."""
    folder = root / "stl10_binary"
    folder.mkdir()
    for seed, split in enumerate(("train", "test")):
        (folder / f"{split}_X.bin").write_bytes(noise(20 + seed, 3, 3 * 96 * 96).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([10, 1, 4 + seed]))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    return folder


def write_mnist(root: Path, packed: bool) -> Path:
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for seed, start in enumerate(("train", "t10k")):
        pixels, labels = noise(30 + seed, 4, 28, 28), bytes([7, 2, seed, 9])
        for name, content in (
            (f"{start}-images-idx3-ubyte", struct.pack(">4I", 2051, 4, 28, 28) + pixels.tobytes()),
            (f"{start}-labels-idx1-ubyte", struct.pack(">2I", 2049, 4) + labels),
        ):
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_digits(root: Path, train: int = 300, test: int = 200) -> Path:
    """Handwritten digits in MNIST's files: those of 8 x 8 that scikit-learn brings along, each point as 3 x 3."""
    from sklearn.datasets import load_digits

    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    digits = load_digits()
    pixels = np.pad(np.kron(digits.images, np.ones((1, 3, 3))) * 15.9, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    for start, places in (("train", range(train)), ("t10k", range(train, train + test))):
        chosen, labels = pixels[places], digits.target[places].astype(np.uint8)
        (folder / f"{start}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, len(places), 28, 28) + chosen.tobytes())
        (folder / f"{start}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, len(places)) + labels.tobytes())
    return folder
