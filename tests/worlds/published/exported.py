"""One set of pictures as it is exported: a WebDataset as CLIP_benchmark's webdataset_builder.py writes it, and a parquet folder as
Hugging Face's datasets does. With a drawn world, to try evaluate.py on:

    python -m data_pipeline scenes --out runs/demo/world
    python -m tests.worlds.published.exported runs/demo/world test runs/demo/exports
    python -m sycoca_ds.eval datasets --data-root runs/demo/exports
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.world.drawn.canvas import encode_jpeg
from data_pipeline.world.drawn.demo_pixels import draw
from data_pipeline.world.drawn.demo_scenes import sample_scenes


@dataclass(frozen=True)
class Shown:
    """A picture and what is said of it."""

    picture: bytes
    label: int
    captions: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    """What .npy holds, where there is one."""
    extension: str = "jpg"


def scenes(images: int, captions: int = 2) -> list[Shown]:
    """The pictures and captions of `eval_world.make_data`."""
    found = []
    for number, scene in enumerate(sample_scenes(images, seed=5)):
        said = [scene.caption, *(f"picture number {place}: {scene.caption}" for place in range(1, captions))]
        found.append(Shown(encode_jpeg(draw(scene, (5, number))), scene.label, tuple(said)))
    return found


def of_world(world: Path, split: str) -> tuple[list[Shown], tuple[str, ...], tuple[str, ...]]:
    """Pictures, classes and templates of a drawn world's folder; a picture's caption is its template with its class."""
    said = json.loads((world / f"{split}_labels.json").read_text())
    found = []
    for (url, label), template in zip(said["labels"].items(), said["templates"] * len(said["labels"]), strict=False):
        path = world / "images" / split / url.rpartition("/")[2]
        found.append(Shown(path.read_bytes(), label, (template.replace("{c}", said["classes"][label]),)))
    return found, tuple(said["classes"]), tuple(said["templates"])


def write_wds(
    folder: Path,
    samples: Sequence[Shown],
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    *,
    kind: str = "classification",
    split: str = "test",
    per_shard: int = 10,
) -> Path:
    """A set of classes, or with `kind` retrieval one of captions."""
    import webdataset

    (folder / split).mkdir(parents=True, exist_ok=True)
    for name, lines in (("classnames", classes), ("zeroshot_classification_templates", templates)):
        if lines:
            (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    if kind != "classification":
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    sink = webdataset.ShardWriter(f"{folder / split}/%d.tar", maxcount=per_shard, verbose=0)
    for number, sample in enumerate(samples):
        said = {"txt": "\n".join(sample.captions)} if kind == "retrieval" else {"cls": sample.label}
        if sample.numbers:
            said["npy"] = np.array(sample.numbers)
        sink.write({"__key__": f"s{number:07d}", sample.extension: sample.picture, **said})
    shards = sink.shard
    sink.close()
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    return folder


def write_parquet(
    folder: Path,
    samples: Sequence[Shown],
    classes: Sequence[str] = (),
    *,
    captioned: bool = False,
    split: str = "test",
    files: int = 2,
    per_group: int = 5,
    paths_only: bool = False,
) -> Path:
    """Columns image and label, or image and caption, with the features that datasets 5.2 writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}}
    if captioned:
        features["caption"] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
    else:
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("caption", pa.list_(pa.string())) if captioned else ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    each = -(-len(samples) // files)
    for number in range(files):
        own = samples[number * each : (number + 1) * each]
        shown = [{"bytes": None if paths_only else sample.picture, "path": "a.jpg"} for sample in own]
        said = [list(sample.captions) if captioned else sample.label for sample in own]
        table = pa.Table.from_arrays([pa.array(shown, image), pa.array(said, schema.field(1).type)], schema=schema)
        path = folder / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(table, path, row_group_size=per_group)
    return folder


def write_winogavil(folder: Path, samples: Sequence[Shown], asked: Sequence[tuple[str, list[int], list[int]]]) -> Path:
    """asked: cues, numbers of the samples to choose among, and those that are right."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "candidate_images": pa.array(
            [[{"bytes": samples[place].picture, "path": None} for place in among] for _, among, _ in asked], pa.list_(image)
        ),
        "candidates": [[f"picture {place}" for place in among] for _, among, _ in asked],
        "associations": [[f"picture {place}" for place in right] for _, _, right in asked],
        "cue": [cue for cue, _, _ in asked],
        "num_candidates": [len(among) for _, among, _ in asked],
    }
    pq.write_table(pa.table(columns), folder / "test.parquet", row_group_size=3)
    return folder


def npy(values: Sequence[object], **options: object) -> bytes:
    """A .npy as numpy writes it."""
    stream = io.BytesIO()
    np.save(stream, np.array(values, **options))
    return stream.getvalue()


def main(world: str, split: str, out: str) -> None:
    samples, classes, templates = of_world(Path(world), split)
    for kind in ("classification", "retrieval"):
        write_wds(Path(out) / f"wds_scenes_{kind}", samples, classes, templates, kind=kind, per_shard=1_000)
        write_parquet(Path(out) / f"scenes_{kind}", samples, classes, captioned=kind == "retrieval", per_group=100)
    print(f"{len(samples)} pictures of {split} in four folders of {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
