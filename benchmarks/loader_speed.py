"""Pictures a second on one core, from the same tars, for `python -m benchmarks input [--photos DIR] [--open-clip build/open_clip]`

decoding    `cv2.imdecode` of the same files from memory, nothing else
ours        what a loader process does for a batch: index, read, decode, cut, tokenise, pack
 + resize   the same with bicubic resizing in the loader process, as torch does it on bytes, instead of on the training device
open_clip   open_clip 3.3's own `get_wds_dataset` with its training transform and tokenizer: webdataset, PIL, torchvision

All in one process and thread each, in turns, with the same BPE. `--photos` takes a folder of JPEGs, brought to a short side of 256
px at quality 95; without it, noise with the spectrum of photographs. Run as a script this is open_clip's process.
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
from contextlib import contextmanager
from pathlib import Path

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(REPOSITORY)] if __name__ == "__main__" else sys.path[:1]

from benchmarks.frame import Clock, Turn  # noqa: E402
from benchmarks.peers import write_clip_tokenizer  # noqa: E402

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


def rate(batches: Iterator[int], seconds: float) -> Turn:
    """A picture's share of some seconds of an endless iterator of how many each batch had."""
    next(batches)
    clock, began, done = Clock(), time.perf_counter(), 0
    clock.start()
    while time.perf_counter() - began < seconds:
        done += next(batches)
    turn = clock.stop()
    return Turn(turn.seconds / done, turn.processor / done, turn.stalled)


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


@contextmanager
def prepared(photos: Path | None, open_clip: Path) -> Iterator[dict[str, Callable[[float], Turn]]]:
    """Each way, to be given seconds; caches and shuffle buffers are filled."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, clip = Path(temporary) / "data", Path(temporary) / "clip.json"
        write_data(folder, photos)
        write_clip_tokenizer(open_clip, clip)
        paths = os.pathsep.join([str(open_clip.resolve()), str(REPOSITORY)])
        peer = subprocess.Popen(
            [sys.executable, __file__, "--peer", folder],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def ask_peer(seconds: float) -> Turn:
            peer.stdin.write(f"{seconds}\n")
            peer.stdin.flush()
            return Turn(*json.loads(peer.stdout.readline()))

        own = {"decoding": decoding(folder), "ours": ours(folder, clip), "ours + resize": ours(folder, clip, resize_each)}
        ways = {name: lambda seconds, it=it: rate(it, seconds) for name, it in own.items()} | {"open_clip": ask_peer}
        for way in ways.values():
            way(1.0)
        try:
            yield ways
        finally:
            peer.stdin.close()
            peer.wait()


def main() -> None:
    """open_clip's process: a line with seconds in, a turn out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    batches = open_clip_batches(parser.parse_args().peer)
    for line in sys.stdin:
        turn = rate(batches, float(line))
        print(json.dumps([turn.seconds, turn.processor, turn.stalled]), file=answers, flush=True)


if __name__ == "__main__":
    main()
