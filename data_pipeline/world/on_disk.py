"""A drawn world on disk: pictures, catalogues in LAION's schema, labels, questions, regions, captions that
nearly fit; with a fair share of trouble."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError, check_format
from data_pipeline.files import sync_folder, write_json
from data_pipeline.progress import Progress
from data_pipeline.world.drawn.canvas import encode_jpeg, encode_mask
from data_pipeline.world.drawn.scene import Scene
from data_pipeline.world.drawn.worlds import WORLDS, World
from data_pipeline.world.laion import write_laion_catalogue
from data_pipeline.world.server import HOST

FORMAT = 1
REGIONS_FORMAT = 1
SPLITS = ("test", "val", "train")
"""In this order descriptions are dealt out, so that a larger training split leaves val and test as they are."""
TROUBLE_SHARE = 0.05
SLOW_ROWS = 2
ROW_TROUBLES = (
    "dead",
    "page",
    "corrupt",
    "bomb",
    "long",
    "duplicate",
    "file",
    "empty",
    "tiny",
    "nsfw",
    "dissimilar",
    "private",
)
"""Trouble rows are dealt out over these in turn; slow links are SLOW_ROWS a split, each costs seconds."""
Splits = dict[str, tuple[Sequence[Scene], Sequence[Scene]]]


def trouble_count(good: int) -> int:
    """Rows in trouble beside `good` good ones: about 5 %, and at least one of each kind."""
    return max(len(ROW_TROUBLES), round(good * TROUBLE_SHARE))


def deal(sizes: dict[str, int], seed: int, world: World = WORLDS["demo"]) -> Splits:
    """Scenes of each split: (good ones, ones used in rows in trouble). No description occurs twice anywhere."""
    needed = {split: sizes[split] + trouble_count(sizes[split]) + SLOW_ROWS for split in SPLITS}
    scenes = world.sample_scenes(sum(needed.values()), seed)
    result, start = {}, 0
    for split in SPLITS:
        good = start + sizes[split]
        result[split] = (scenes[start:good], scenes[good : start + needed[split]])
        start += needed[split]
    return result


def _row(number: int, url: str, text: str, side: int = 64, nsfw: str = "UNLIKELY", similarity: float = 0.33) -> dict:
    return {
        "SAMPLE_ID": number,
        "URL": url,
        "TEXT": text,
        "HEIGHT": side,
        "WIDTH": side,
        "LICENSE": "?",
        "NSFW": nsfw,
        "similarity": similarity,
    }


def catalogue_rows(split: str, good: Sequence[Scene], spare: Sequence[Scene], seed: int, port: int) -> list[dict]:
    """Rows of one split in LAION's columns, good ones and trouble mixed in a seeded order."""
    base = f"http://{HOST}:{port}"
    rng = np.random.default_rng([seed, 3, SPLITS.index(split)])
    rows = [
        _row(
            0,
            f"{base}/images/{split}/{number:06d}.jpg",
            scene.caption,
            similarity=round(float(rng.uniform(0.29, 0.4)), 4),
        )
        for number, scene in enumerate(good)
    ]
    kinds = ["slow"] * SLOW_ROWS + [ROW_TROUBLES[n % len(ROW_TROUBLES)] for n in range(len(spare) - SLOW_ROWS)]
    for number, (kind, scene) in enumerate(zip(kinds, spare, strict=True)):
        here = f"{base}/dead/{split}/{number:06d}.jpg"
        if kind == "duplicate":
            rows.append(dict(rows[int(rng.integers(len(good)))]))
        elif kind == "file":
            rows.append(_row(0, f"file:///etc/hostname?{split}{number}", scene.caption))
        elif kind == "private":
            rows.append(_row(0, f"http://169.254.169.254/latest/{split}/{number:06d}.jpg", scene.caption))
        elif kind == "empty":
            rows.append(_row(0, here, " \t"))
        elif kind == "tiny":
            rows.append(_row(0, here, scene.caption, side=8))
        elif kind == "nsfw":
            rows.append(_row(0, here, scene.caption, nsfw="NSFW"))
        elif kind == "dissimilar":
            rows.append(_row(0, here, scene.caption, similarity=0.05))
        else:
            rows.append(_row(0, f"{base}/{kind}/{split}/{number:06d}.jpg", scene.caption))
    order = rng.permutation(len(rows))
    return [{**rows[int(place)], "SAMPLE_ID": number} for number, place in enumerate(order)]


def _write_texts(folder: Path, world: World, splits: Splits, seed: int, port: int) -> str:
    """Catalogues, labels, questions, regions and captions that nearly fit; returns a digest over the catalogue rows."""
    digest, templates = hashlib.sha256(), world.class_templates()
    for split in SPLITS:
        good, spare = splits[split]
        rows = catalogue_rows(split, good, spare, seed, port)
        digest.update(json.dumps(rows).encode())
        write_laion_catalogue(folder / "catalogue" / f"{split}.parquet", rows)
        scene_of = {f"http://{HOST}:{port}/images/{split}/{number:06d}.jpg": scene for number, scene in enumerate(good)}
        name = f"{world.title}-{split}"
        write_json(
            folder / f"{split}_labels.json",
            {
                "name": name,
                "classes": list(world.classes),
                "templates": templates,
                "labels": {url: scene.label for url, scene in scene_of.items()},
            },
        )
        asked = [{"url": url, **entry} for url, scene in scene_of.items() for entry in world.questions(scene, seed)]
        write_json(folder / f"{split}_questions.json", {"name": name, "questions": asked})
        if world.negatives is not None and split != "train":
            for kind, items in _nearly_fitting(world, good, seed).items():
                write_json(folder / f"{split}_sugarcrepe" / f"{kind}.json", items)
        pictures = {url: scene.regions(_mask_path(split, number)) for number, (url, scene) in enumerate(scene_of.items())}
        write_json(folder / f"{split}_regions.json", {"format": REGIONS_FORMAT, "pictures": pictures})
    return digest.hexdigest()


def _nearly_fitting(world: World, scenes: Sequence[Scene], seed: int) -> dict[str, dict[str, dict[str, str]]]:
    """{kind: {number: item}} in the layout of SugarCrepe's files, on the pictures of `images/SPLIT`."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for number, scene in enumerate(scenes):
        for kind, negative in world.negatives(scene, seed).items():
            item = {"filename": f"{number:06d}.jpg", "caption": scene.caption, "negative_caption": negative}
            found.setdefault(kind, {})[str(number)] = item
    return found


def _mask_path(split: str, number: int) -> str:
    """Of a picture's mask, from the world's folder."""
    return f"regions/{split}/{number:06d}.png"


def _draw(folder: Path, world: World, splits: Splits, seed: int, masks_only: bool = False) -> dict[str, str]:
    """Pictures and masks; returns a digest over either."""
    pictures, masks = hashlib.sha256(), hashlib.sha256()
    with Progress("draw scenes", sum(len(good) for good, _ in splits.values()), "scenes") as bar:
        for split in SPLITS:
            for kind in ("images", "regions"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            for number, scene in enumerate(splits[split][0]):
                picture, mask = world.paint(scene, (seed, 4, SPLITS.index(split), number))
                if not masks_only:
                    data = encode_jpeg(picture)
                    (folder / "images" / split / f"{number:06d}.jpg").write_bytes(data)
                    pictures.update(data)
                data = encode_mask(mask)
                (folder / _mask_path(split, number)).write_bytes(data)
                masks.update(data)
                bar.advance()
    found = {"masks_sha256": masks.hexdigest()}
    return found if masks_only else {"pictures_sha256": pictures.hexdigest(), **found}


def build_world(out: Path, sizes: dict[str, int], seed: int, port: int, name: str = "demo") -> dict:
    """Draws the world `name` into `out` (through a neighbouring folder and a rename) and returns world.json's content.

    Args: sizes: good pictures by split (train, val, test). A world of the same name, sizes and seed is kept; if only the port
    differs, its catalogues are rewritten; if an earlier version drew it without masks, these are added. UserError for a folder
    that holds another world or other files.
    """
    out, world = Path(out), WORLDS[name]
    record = {"format": FORMAT, "world": name, "sizes": sizes, "seed": seed}
    found = _read_world(out)
    if found is not None:
        found = {"world": "demo"} | found  # once there was no other
        if {key: found.get(key) for key in record} != record:
            raise UserError(
                f"{out}: holds a {found['world']} world drawn with sizes {found.get('sizes')} and seed {found.get('seed')}; "
                f"asked for a {name} world with {sizes} and seed {seed}; choose another --out or delete the folder"
            )
        if found["port"] == port and "masks_sha256" in found:
            print(f"{out}: already drawn", file=sys.stderr, flush=True)
            return found
    splits = deal(sizes, seed, world)
    counts = {
        split: {"good": len(good), "trouble": len(spare), "rows": len(good) + len(spare)} for split, (good, spare) in splits.items()
    }
    record |= {"port": port, "counts": counts}
    if found is not None:
        digests = {key: found[key] for key in ("pictures_sha256", "masks_sha256") if key in found}
        if "masks_sha256" not in found:
            digests |= _draw(out, world, splits, seed, masks_only=True)
        (out / "world.json").unlink()
        record |= {**digests, "rows_sha256": _write_texts(out, world, splits, seed, port)}
        write_json(out / "world.json", record)
        return record
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        record |= {**_draw(part, world, splits, seed), "rows_sha256": _write_texts(part, world, splits, seed, port)}
        write_json(part / "world.json", record)
        part.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return record


def _read_world(out: Path) -> dict | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / "world.json").read_text())
        check_format(found["format"], FORMAT, out / "world.json", "draw it anew in another --out")
        return found
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--out {out}: exists and is no finished world (no world.json); choose another folder or delete it"
        ) from None
