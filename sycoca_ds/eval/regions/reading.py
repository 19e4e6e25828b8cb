"""Which layout a file or folder of regions has."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.eval.regions.annotated import Layout, read_json
from sycoca_ds.eval.regions.coco import Coco
from sycoca_ds.eval.regions.flickr import Flickr
from sycoca_ds.eval.regions.voc import Voc
from sycoca_ds.eval.regions.world import World

EXPECTED = (
    "a drawn world's SPLIT_regions.json, COCO's instances_*.json, a folder with either, a folder with Sentences/ and Annotations/ "
    "(Flickr30K Entities) or with SegmentationClass/ (PASCAL VOC)"
)


def open_layout(path: str | Path) -> Layout:
    """Raises `UserError` for what is not there, or of no known layout."""
    path = Path(path)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        if (path / "Sentences").is_dir() and (path / "Annotations").is_dir():
            return Flickr(path)
        if (path / "SegmentationClass").is_dir():
            return Voc(path)
        patterns = ("*_regions.json", "instances_*.json", "annotations/instances_*.json")
        files = next((found for pattern in patterns if (found := sorted(path.glob(pattern)))), [])
    else:
        raise UserError(f"regions {path}: no such file or folder; expected {EXPECTED}")
    contents = {file: read_json(file) for file in files}
    for layout, fields in ((World, {"format", "pictures"}), (Coco, {"images", "annotations", "categories"})):
        if contents and all(isinstance(content, dict) and fields <= set(content) for content in contents.values()):
            return layout(contents)
    raise UserError(f"regions {path}: of no known layout; expected {EXPECTED}")
