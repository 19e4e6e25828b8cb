"""The data set as evaluation sees it: captions by picture, batches, damage by name."""

import shutil

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.collection import Collection


def test_collection_groups_captions(world):
    data = Collection(world / "data", 48)
    assert len(data) == 24 and len(data.captions) == 48
    assert data.image_of_text_T.tolist() == [i for i in range(24) for _ in range(2)]
    assert data.captions_of_image[3][1] == f"picture number 1: {data.captions_of_image[3][0]}"
    shapes = [(numbers, tuple(image.shape), image.dtype) for numbers, image in data.batches(16)]
    assert shapes == [
        (list(range(16)), (16, 3, 48, 48), torch.uint8),
        (list(range(16, 24)), (8, 3, 48, 48), torch.uint8),
    ]


def test_unreadable_image_is_named_never_skipped(world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    data = Collection(tmp_path / "data", 48)
    picture = data.pictures[20]
    with open(picture.shard, "r+b") as file:
        file.seek(picture.offset)
        file.write(b"\0" * picture.size)
    with pytest.raises(UserError, match=f"sample {picture.key}: the image cannot be read"):
        data.image(20)
