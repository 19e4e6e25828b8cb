"""Pictures a second on one core, from the same tars: `make peer`, then
`python benchmarks/loader_speed.py [--photos DIR] [--open-clip build/open_clip]`

decoding    `cv2.imdecode` of the same files from memory, nothing else
ours        what a loader process does for a batch: index, read, decode, cut, tokenise, pack
 + resize   the same with bicubic resizing in the loader process, as torch does it on bytes, instead of on the training device
open_clip   open_clip 3.3's own `get_wds_dataset` with its training transform and tokenizer: webdataset, PIL, torchvision

All in one process and thread each, in turns, with the same BPE; ratios are of the medians. `--photos` takes a folder of
JPEGs, brought to a short side of 256 px at quality 95; without it, noise with the spectrum of photographs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

SAMPLES, SHARD, BATCH, SIDE, SIZE = 2_000, 250, 64, 256, 224
CAPTIONS = ("a dog runs over the wet sand towards the water", "two people in red coats wait at the corner of a street in winter")


def noise(number: int) -> np.ndarray:
    """A picture with amplitudes of 1/f, the spectrum of photographs."""
    random = np.random.default_rng(number)
    height, width = (SIDE, SIDE * 3 // 2)[:: random.choice((1, -1))]
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    spectrum = np.fft.fft2(random.standard_normal((3, height, width))) / np.maximum(np.hypot(y, x), 1 / width) ** 1.2
    picture = np.fft.ifft2(spectrum).real
    picture = 0.7 * picture.mean(0) + 0.3 * picture  # channels go together
    return np.clip(128 + 50 * picture / picture.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def small(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    scale = SIDE / min(picture.shape[:2])
    return cv2.resize(picture, (round(picture.shape[1] * scale), round(picture.shape[0] * scale)), interpolation=cv2.INTER_AREA)


def write_data(folder: Path, photos: Path | None) -> None:
    """A verified data set folder of SAMPLES pictures; `verify` is the pipeline's."""
    from data_pipeline.shards.verify import verify

    made = [small(path) for path in sorted(photos.rglob("*.jpg"))] if photos else [noise(number) for number in range(200)]
    encoded = [cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for picture in made]
    (folder / "shards").mkdir(parents=True)
    for shard in range(SAMPLES // SHARD):
        with tarfile.open(folder / "shards" / f"{shard:05d}.tar", "w") as tar:
            for place in range(SHARD):
                number = shard * SHARD + place
                height, width = made[number % len(made)].shape[:2]
                caption = CAPTIONS[number % 2]
                facts = {"uid": f"{number:016x}", "url": f"http://example.org/{number}.jpg", "caption": caption}
                facts |= {"width": width, "height": height, "status": "success"}
                for suffix, data in (
                    ("jpg", encoded[number % len(made)]),
                    ("txt", caption.encode()),
                    ("json", json.dumps(facts).encode()),
                ):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    verify(folder, processes=2)


def rate(batches: Iterator[int], seconds: float) -> float:
    """Pictures a second from an endless iterator of how many each batch had."""
    next(batches)
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        done += next(batches)
    return done / spent


def decoding(folder: Path) -> Iterator[int]:
    encoded = []
    for tar in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(tar) as file:
            encoded += [np.frombuffer(file.extractfile(m).read(), np.uint8) for m in file if m.name.endswith(".jpg")]
    order = np.random.default_rng(0)
    while True:
        order.shuffle(encoded)
        for first in range(0, len(encoded) - BATCH, BATCH):
            for data in encoded[first : first + BATCH]:
                cv2.imdecode(data, cv2.IMREAD_COLOR)
            yield BATCH


def ours(folder: Path, tokenizer: Path, finish: Callable = lambda batch: None) -> Iterator[int]:
    from sycoca_ds.data.loader import PlannedBatches, TrainSet, train_loader
    from sycoca_ds.data.plan import Plan
    from sycoca_ds.data.sources import Sources
    from sycoca_ds.data.tokenizer import Tokenizer
    from sycoca_ds.data.transforms import Augmentation

    sources = Sources.load([folder])
    plan = Plan(sources.kept, global_batch_size=BATCH, lanes=16, window=4096, seed=0)
    dataset = TrainSet(sources, plan, Tokenizer(tokenizer), augmentation=Augmentation(SIZE), context_length=77)
    for batch in train_loader(dataset, PlannedBatches(plan, 0, 1_000_000, 1, 0, 1), 0, pin=False):
        finish(batch)
        yield len(batch.key_B)


def resize_each(batch) -> None:
    """As a loader would: torch's kernel for bytes, a picture at a time."""
    first, out_BHWC = 0, np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    for number, (height, width) in enumerate(batch.size_B2.tolist()):
        crop = batch.pixels[first : first + height * width * 3].view(1, height, width, 3)
        x = F.interpolate(crop.permute(0, 3, 1, 2), (SIZE, SIZE), mode="bicubic", antialias=True)
        out_BHWC[number] = x[0].permute(1, 2, 0).numpy()
        first += height * width * 3


def open_clip_batches(folder: Path) -> Iterator[int]:
    import open_clip
    from open_clip_train.data import get_wds_dataset

    names = f"{folder}/shards/{{00000..{SAMPLES // SHARD - 1:05d}}}.tar"
    arguments = argparse.Namespace(
        train_data=names,
        train_num_samples=SAMPLES,
        train_data_upsampling_factors=None,
        seed=0,
        workers=0,
        batch_size=BATCH,
        world_size=1,
    )
    transform = open_clip.image_transform(SIZE, is_train=True)
    info = get_wds_dataset(arguments, transform, True, tokenizer=open_clip.get_tokenizer("coca_ViT-B-32"))
    while True:
        for images, texts in info.dataloader:
            assert images.shape == (BATCH, 3, SIZE, SIZE) and texts.shape == (BATCH, 76)
            yield BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--open-clip", type=Path, default=Path("build/open_clip"))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.peer is not None:  # open_clip's process: a line in, a rate out
        batches = open_clip_batches(options.peer)
        for line in sys.stdin:
            print(rate(batches, float(line)), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, clip = Path(temporary) / "data", Path(temporary) / "clip.json"
        write_data(folder, options.photos)
        merges = next(options.open_clip.rglob("bpe_simple_vocab_16e6.txt.gz"))
        subprocess.run(
            [sys.executable, "-m", "data_pipeline", "tokenizer", "import-clip", "--merges", merges, "--out", clip], check=True
        )
        paths = os.pathsep.join([str(Path.cwd()), str(options.open_clip.resolve())])
        peer = subprocess.Popen(
            [sys.executable, __file__, "--peer", folder],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def ask_peer(seconds: float) -> float:
            peer.stdin.write(f"{seconds}\n")
            peer.stdin.flush()
            return float(peer.stdout.readline())

        own = {
            "decoding": decoding(folder),
            "ours": ours(folder, clip),
            "ours + resize": ours(folder, clip, resize_each),
        }
        ways = {name: lambda seconds, it=it: rate(it, seconds) for name, it in own.items()} | {"open_clip": ask_peer}
        for way in ways.values():
            way(1.0)  # fills caches and shuffle buffers
        found = {name: [] for name in ways}
        for turn in range(options.turns):
            for name, way in ways.items():
                found[name].append(way(options.seconds))
            print(f"turn {turn + 1}: " + ", ".join(f"{name} {values[-1]:,.0f}" for name, values in found.items()), flush=True)
        peer.stdin.close()
        peer.wait()
        kilobytes = sum(path.stat().st_size for path in (folder / "shards").glob("*.tar")) / SAMPLES / 1e3
    middle = {name: float(np.median(values)) for name, values in found.items()}
    versions = f"OpenCV {cv2.__version__}, torch {torch.__version__}"
    print(f"\n{SIDE} px short side, {kilobytes:.1f} kB of tar a sample, {SIZE} px pictures; {versions}")
    for name, value in middle.items():
        ratios = f"{value / middle['decoding']:5.0%} of decoding  {value / middle['open_clip']:5.2f} x open_clip"
        print(f"{name:14} {value:7,.0f} pictures/s  {ratios}")


if __name__ == "__main__":
    main()
