"""Reading, decoding and batching against the tar itself and slow references."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.data.batch import Batch
from sycoca_ds.data.loader import PlannedBatches, SampleRandom, ShardReader, TrainSet, train_loader
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.resampling import resize_crops
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation, crop_box, eval_image, jitter_colours, jpeg_size, load_image
from sycoca_ds.model.pixels import denormalise, normalise
from tests.worlds.data.data_sets import write_data_set


def jpeg(height: int, width: int, quality: int = 95) -> bytes:
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_the_reader_returns_what_tarfile_returns(data_set: Path) -> None:
    sources = Sources.load([data_set])
    manifest, reader = sources.manifests[0], ShardReader(sources)
    for number, shard in enumerate(manifest.shards):
        with tarfile.open(shard.path) as tar:
            names = [name for name in tar.getnames() if name.endswith(".jpg")]
            assert len(names) == manifest.kept_per_shard[number]
            for position, name in enumerate(names):
                expected = tar.extractfile(name).read(), tar.extractfile(name[:-3] + "txt").read().decode()
                assert reader.read(number, position) == expected


def batches(folder: Path, workers: int, first: int = 0, world: int = 1, rank: int = 0) -> list[Batch]:
    sources = Sources.load([folder])
    plan = Plan(sources.kept, global_batch_size=16, lanes=4, window=8, seed=3)
    dataset = TrainSet(
        sources, plan, Tokenizer(folder / "tokenizer.json"), augmentation=Augmentation(24, (0.5, 1.0)), context_length=12
    )
    planned = PlannedBatches(plan, first, 9, world, rank, 1)
    return list(train_loader(dataset, planned, workers, pin=False))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("pixels", "size_B2", "text_BL", "label_at_M", "key_B"))


def images(batch: Batch) -> torch.Tensor:
    return batch.to_device(torch.device("cpu"), 24)["image_BCHW"]


def test_workers_ranks_and_resuming_change_nothing(data_set: Path) -> None:
    """Sequences of whole batches, augmented pixels included."""
    alone = batches(data_set, workers=0)
    assert len(alone) == 9 and images(alone[0]).shape == (16, 3, 24, 24) and images(alone[0]).dtype == torch.uint8
    for workers in (1, 2, 4):
        assert all(same(a, b) for a, b in zip(alone, batches(data_set, workers), strict=True))
    assert all(same(a, b) for a, b in zip(alone[5:], batches(data_set, 2, first=5), strict=True))
    for whole, left, right in zip(alone, batches(data_set, 0, world=2), batches(data_set, 1, world=2, rank=1), strict=True):
        assert torch.equal(images(whole), torch.cat([images(left), images(right)]))
        assert torch.equal(whole.key_B, torch.cat([left.key_B, right.key_B]))
    keys = torch.cat([batch.key_B for batch in alone[:6]])
    assert len(keys.unique()) == len(keys), "an epoch (6 steps) has a key a sample"
    assert not torch.equal(images(alone[0]), images(alone[6])), "the next epoch has another order"


def test_labels_are_all_real_tokens_but_the_first(data_set: Path) -> None:
    for batch in batches(data_set, workers=0)[:2]:
        length, expected = batch.text_BL.shape[1] - 1, []
        for row, ids in enumerate(batch.text_BL.tolist()):
            expected += [row * length + place - 1 for place in range(1, ids.index(2) + 1)]
        assert batch.label_at_M.tolist() == expected
        assert len(expected) < 16 * length, "some captions are padded"


def test_an_unreadable_sample_is_replaced_by_the_same_one_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_data_set(tmp_path / "data", [20, 20], seed=5)
    sources = Sources.load([folder])
    manifest = sources.manifests[0]
    row = manifest.index(0, columns=["image_offset", "image_bytes"]).to_pylist()[4]
    with open(manifest.shards[0].path, "r+b") as file:
        file.seek(row["image_offset"])
        file.write(b"\0" * row["image_bytes"])
    plan = Plan(sources.kept, global_batch_size=4, lanes=2, window=8, seed=3)
    dataset = TrainSet(
        sources, plan, Tokenizer(folder / "tokenizer.json"), augmentation=Augmentation(24, (1.0, 1.0)), context_length=12
    )
    batch = dataset.__getitems__([(0, 3), (0, 4), (0, 5)])
    assert batch.stand_ins == 1 and "sample 4 (position 4 of" in caplog.text and "00000.tar" in caplog.text
    assert torch.equal(batch.text_BL[1], batch.text_BL[2]) and not torch.equal(batch.text_BL[0], batch.text_BL[1])


def test_a_flipped_bit_that_decodes_all_the_same_is_not_fed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_data_set(tmp_path / "data", [20], seed=5)
    sources = Sources.load([folder])
    row = sources.manifests[0].index(0, columns=["image_offset", "image_bytes", "text_offset"]).to_pylist()[4]
    whole = ShardReader(sources).read(0, 4)
    for offset in (row["image_offset"] + row["image_bytes"] // 2, row["text_offset"]):
        with open(sources.name(0), "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        with pytest.raises(OSError, match="sample 4 of .*00000.tar is not what was verified"):
            ShardReader(sources).read(0, 4)
        assert ShardReader(sources).read(0, 3)
        with open(sources.name(0), "r+b") as file:
            file.seek(offset)
            file.write(bytes([byte]))
    assert ShardReader(sources).read(0, 4) == whole


def test_where_no_stand_in_can_be_read_the_batch_says_so(tmp_path: Path) -> None:
    """Not an exception: the other ranks would wait for this one. A black picture without words keeps the shape."""
    folder = write_data_set(tmp_path / "data", [40], seed=5)
    sources = Sources.load([folder])
    with open(sources.name(0), "r+b") as file:
        for row in sources.manifests[0].index(0, columns=["image_offset", "image_bytes"]).to_pylist()[10:30]:
            file.seek(row["image_offset"])
            file.write(b"\0" * row["image_bytes"])
    plan = Plan(sources.kept, global_batch_size=4, lanes=2, window=8, seed=3)
    dataset = TrainSet(sources, plan, Tokenizer(folder / "tokenizer.json"), augmentation=Augmentation(24), context_length=12)
    whole, mended, lost = (dataset.__getitems__([(0, sample), (0, 1)]) for sample in (9, 25, 12))
    assert (whole.lost, whole.stand_ins, mended.lost, mended.stand_ins) == (None, 0, None, 1)
    assert "samples 12 to 19 cannot be read (" in lost.lost and "run `python -m data_pipeline verify`" in lost.lost
    assert lost.stand_ins == 2 and not images(lost).any(), "nothing more is read for a step that will not be saved"
    assert lost.text_BL[0, :3].tolist() == [1, 2, 0] and images(lost).shape == images(whole).shape


def test_several_folders_are_counted_through(tmp_path: Path, data_set: Path) -> None:
    other = write_data_set(tmp_path / "other", [9, 4], seed=8)
    both = Sources.load([data_set, other])
    assert both.samples == 96 + 13 and [len(kept) for kept in both.kept] == [5, 2]
    assert [both.name(number) for number in range(7)] == [str(s.path) for m in both.manifests for s in m.shards]
    reader = ShardReader(both)
    assert reader.read(6, 3) == ShardReader(Sources.load([other])).read(1, 3)
    digests = {Sources.load(folders).digest for folders in ([data_set], [other], [data_set, other], [other, data_set])}
    assert len(digests) == 4 and Sources.load([data_set]).digest == both.manifests[0].digest


def test_evaluation_transform_is_resize_and_centre_crop_of_pil() -> None:
    """By the definition of torchvision's Resize and CenterCrop on PIL images: short side to size, the other truncated."""
    for height, width, size in ((60, 90, 48), (90, 60, 48), (37, 53, 24), (64, 64, 48), (48, 48, 48), (30, 200, 24)):
        image = load_image(jpeg(height, width))
        scale = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
        picture = Image.fromarray(image).resize(scale, Image.Resampling.BICUBIC)
        left, top = int(round((scale[0] - size) / 2.0)), int(round((scale[1] - size) / 2.0))
        expected = np.array(picture)[top : top + size, left : left + size]
        assert np.array_equal(eval_image(image, size).permute(1, 2, 0).numpy(), expected)


def test_scaled_decoding_never_falls_below_the_target() -> None:
    for height, width in ((100, 150), (96, 96), (97, 400), (383, 384), (48, 48), (800, 500)):
        data = jpeg(height, width)
        assert jpeg_size(data) == (height, width)
        full, reduced = load_image(data), load_image(data, at_least=48)
        assert full.shape == (height, width, 3)
        factor = round(full.shape[0] / reduced.shape[0])
        assert min(reduced.shape[:2]) >= 48 and (min(height, width) < 2 * 48) == (factor == 1)
        assert min(reduced.shape[:2]) < 2 * 48
        file = io.BytesIO()
        Image.fromarray(full).save(file, "PNG")
        other = load_image(file.getvalue(), at_least=48)
        assert 48 <= min(other.shape[:2]) < 2 * 48, "no other format travels larger"
        if factor > 1:  # libjpeg averages blocks: the reduced picture is the full one's average to a few grey levels
            small = np.array(Image.fromarray(full).resize(reduced.shape[1::-1], Image.Resampling.BOX)).astype(int)
            assert np.abs(small - reduced).mean() < 4
    assert jpeg_size(b"\x89PNG....") is None
    with pytest.raises(ValueError, match="12 bytes that give no picture .not an image"):
        load_image(b"not an image")
    with pytest.raises(ValueError, match="no image OpenCV can decode"):
        load_image(jpeg(40, 60)[:100])
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (1 << 16).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    with pytest.raises(ValueError, match="give no picture .truncated image"):
        load_image(header + zlib.crc32(header[12:]).to_bytes(4, "big") + b"\x00\x00\x00\x00IDATabcd")


def test_random_crops_have_the_asked_shares_and_ratios() -> None:
    boxes = np.array([crop_box(200, 220, (0.3, 0.6), np.random.default_rng(seed)) for seed in range(2000)])
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 200).all() and (left + w <= 220).all()
    share, ratio = h * w / (200 * 220), w / h
    # uniform shares and log ratios: ends reached, middle in the middle (sides are whole pixels)
    assert 0.29 < share.min() < 0.305 and 0.58 < share.max() < 0.61 and abs(np.median(share) - 0.45) < 0.015
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35 and abs(np.median(np.log(ratio))) < 0.02
    spare = (200 - h > 60) & (220 - w > 60)
    assert top.min() == left.min() == 0 and (top[spare] > 60).any() and (left[spare] > 60).any()


def crop_by_trying(height: int, width: int, scale: tuple[float, float], draws: np.ndarray) -> tuple[int, int, int, int] | None:
    """torchvision's RandomResizedCrop.get_params up to its fallback, try by try, its uniform numbers given."""
    for share, ratio, down, across in draws.reshape(10, 4):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * ratio)
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
    return None


def test_crops_are_those_of_trying_ten_times() -> None:
    """Also where most tries or all fail: sides about as unequal as the widest ratio allows."""
    sizes, fitted = np.random.default_rng(0), 0
    for seed in range(3000):
        height, width = int(sizes.integers(1, 300)), int(sizes.integers(1, 300))
        scale = [(0.9, 1.0), (0.3, 0.6), (1.0, 1.0)][seed % 3]
        expected = crop_by_trying(height, width, scale, np.random.default_rng(seed).random(40))
        found = crop_box(height, width, scale, np.random.default_rng(seed))
        assert expected is None or found == expected
        fitted += expected is not None
        if expected is None:
            top, left, h, w = found
            assert (h == height or w == width) and abs(2 * top + h - height) <= 1 and abs(2 * left + w - width) <= 1
    assert 500 < fitted < 2500


def test_random_numbers_are_those_of_a_generator_made_for_the_sample() -> None:
    """Set, not made, and whatever was drawn from it before, halves of a number included."""
    shared = SampleRandom(7)
    for epoch, sample in ((0, 0), (0, 1), (3, 123_456_789_012), (0, 1)):
        key, counter = (np.array(words, dtype=np.uint64) for words in ([7, epoch], [0, 0, 1, sample]))
        fresh, random = np.random.Generator(np.random.Philox(key=key, counter=counter)), shared.at(epoch, sample)
        assert random.random(5).tolist() == fresh.random(5).tolist()
        assert random.integers(0, 9, 3, dtype=np.uint32).tolist() == fresh.integers(0, 9, 3, dtype=np.uint32).tolist()
        assert random.permutation(4).tolist() == fresh.permutation(4).tolist()


@pytest.mark.parametrize(
    "height, width, box",
    [(256, 384, (0, 21, 256, 341)), (384, 256, (21, 0, 341, 256)), (10, 90, (0, 38, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_where_no_crop_fits_the_middle_is_taken(height: int, width: int, box: tuple) -> None:
    """The definition of torchvision's RandomResizedCrop: the largest part whose ratio is 3/4 to 4/3."""
    assert {crop_box(height, width, (0.95, 1.0), np.random.default_rng(seed)) for seed in range(20)} == {box}


def resized_by_pil(image: np.ndarray, size: int) -> np.ndarray:
    """Across, then down; PIL 12 and older always do it so, later ones where it is less work."""
    bicubic = Image.Resampling.BICUBIC
    return np.array(Image.fromarray(image).resize((size, len(image)), bicubic).resize((size, size), bicubic)).astype(int)


@pytest.mark.parametrize("size", [48, 81])
def test_crops_are_resized_as_pil_does_in_every_batch(size: int) -> None:
    """Larger and smaller, wide and tall, down to a pixel, black and white noise that overshoots: one grey level for PIL's finer
    weights, two where very many of them are summed. Alone or among others the same bits."""
    random = np.random.default_rng(0)
    crops = [load_image(jpeg(height, width)) for height, width in ((90, 130), (48, 48), (200, 30), (81, 117), (500, 400))]
    crops += [random.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((90, 130), (20, 31), (1, 1), (2, 300))]
    crops += [random.choice([0, 255], (h, w, 3)).astype(np.uint8) for h, w in ((77, 60), (30, 200))]
    crops += [np.full((33, 77, 3), level, np.uint8) for level in (0, 201, 255)] * 8
    pixels = torch.from_numpy(np.concatenate([crop.ravel() for crop in crops]))
    together = resize_crops(pixels, torch.tensor([crop.shape[:2] for crop in crops]), size)
    assert together.shape == (len(crops), 3, size, size) and together.dtype == torch.uint8 and len(crops) > 32
    for crop, found in zip(crops, together, strict=True):
        assert torch.equal(resize_crops(torch.from_numpy(crop.ravel()), torch.tensor([crop.shape[:2]]), size)[0], found)
        difference = np.abs(found.permute(1, 2, 0).numpy() - resized_by_pil(crop, size))
        assert difference.max() <= (1 if max(crop.shape[:2]) < 4 * size else 2) and difference.mean() < 0.1
    assert all(len(found.unique()) == 1 for found in together[-24:]), "a plain picture stays plain"


def test_mirroring_and_colours_are_off_by_default_and_a_function_of_the_generator() -> None:
    image = load_image(jpeg(60, 80))
    plain = Augmentation(48)(image, np.random.default_rng(1))
    top, left, h, w = crop_box(60, 80, (0.9, 1.0), np.random.default_rng(1))
    assert np.array_equal(plain, image[top : top + h, left : left + w])
    assert np.array_equal(Augmentation(48, flip=1.0)(image, np.random.default_rng(1)), plain[:, ::-1])
    half = [Augmentation(48, flip=0.5)(image, np.random.default_rng(seed)) for seed in range(200)]
    straight = [Augmentation(48)(image, np.random.default_rng(seed)) for seed in range(200)]
    same = sum(np.array_equal(a, b) for a, b in zip(half, straight, strict=True))
    assert 60 < same < 140
    assert all(np.array_equal(a, b) or np.array_equal(a[:, ::-1], b) for a, b in zip(half, straight, strict=True))
    jittered = [Augmentation(48, colour_jitter=(0.4, 0.4, 0.4, 0.1))(image, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert np.array_equal(jittered[0], jittered[1]) and not np.array_equal(jittered[0], plain)
    assert jittered[0].shape == plain.shape and jittered[0].dtype == np.uint8 and not np.array_equal(jittered[0], jittered[2])


def test_colours_change_as_far_as_asked() -> None:
    """Each kind alone, against its definition: brightness scales, contrast pulls to the mean grey, saturation to each pixel's grey,
    hue turns red through the circle."""
    image = np.random.default_rng(0).integers(60, 190, (20, 20, 3)).astype(np.uint8)
    grey = np.asarray(Image.fromarray(image).convert("L")).astype(float)
    for number, neutral in enumerate((np.zeros_like(image), np.full(image.shape, round(grey.mean())), grey[..., None])):
        factors = []
        for seed in range(60):
            most = tuple(0.3 if n == number else 0.0 for n in range(4))
            changed = jitter_colours(image, most, np.random.default_rng(seed)).astype(float)
            moved, was = changed - neutral, image - np.asarray(neutral, dtype=float)
            factors.append(float((moved * was).sum() / (was * was).sum()))
            assert np.abs(moved - factors[-1] * was).max() < 2
        assert 0.68 < min(factors) < 0.8 and 1.2 < max(factors) < 1.32
    red = np.full((4, 4, 3), (200, 20, 20), np.uint8)
    turned = [jitter_colours(red, (0, 0, 0, 0.5), np.random.default_rng(seed))[0, 0] for seed in range(40)]
    assert {int(pixel.argmax()) for pixel in turned} == {0, 1, 2} and all(max(pixel) > 190 for pixel in turned)


def test_augmentations_that_mean_nothing_are_refused() -> None:
    for change, field in (
        ({"crop_scale": (0.0, 1.0)}, "data.crop-scale"),
        ({"crop_scale": (0.9, 0.5)}, "data.crop-scale"),
        ({"flip": 1.5}, "data.flip"),
        ({"colour_jitter": (0.1, 0.1, 0.1, 0.6)}, "data.colour-jitter"),
    ):
        with pytest.raises(UserError, match=field):
            Augmentation(48, **change)


def test_normalise_and_back() -> None:
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(1, 3, 16, 16)
    assert torch.equal(denormalise(normalise(image)), image)
    assert normalise(image)[0, 0, 0, 0].item() == pytest.approx(-0.48145466 / 0.26862954)
