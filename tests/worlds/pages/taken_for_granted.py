"""What a page's commands read and no command of the page makes: data sets, catalogues, photographs, runs, official sets, small.

`STAND_INS` names them by their place in the stage. Each is made once for all pages, and copied into a stage when a command first
asks for it. All data set folders and runs have one tokenizer, so that any run goes on with any of them.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.tokenizer.bpe import train as train_tokenizer
from data_pipeline.world.drawn.demo_pixels import draw
from data_pipeline.world.drawn.demo_scenes import CLASSES, sample_scenes
from data_pipeline.world.on_disk import build_world
from sycoca_ds.config.model import with_vocabulary
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.options import parse_options
from sycoca_ds.presets import PRESETS
from tests.worlds.data import nearly_fitting
from tests.worlds.data.catalogues import parquet
from tests.worlds.data.data_sets import parts, write_mirror, write_tar
from tests.worlds.pages.reducing import WORLD
from tests.worlds.published import captioned, classed, exported, listed, packed, questions
from tests.worlds.published.stand_in_java import write_jars
from tests.worlds.trainings.eval_world import make_data, make_labels, make_run
from tests.worlds.trainings.training import SHAPES

IMAGES = 48
SIZES = [word for name, value in SHAPES.items() for word in (f"--model.{name}", str(value))]
SPLITS = {name.removeprefix("--"): int(count) for name, count in WORLD.items()}
SCENES = sample_scenes(IMAGES, seed=5)
"""Those of `make_data`."""


class Lacking(Exception):
    """What this machine does not have, and how to get it."""


class Shelf:
    """Stand-ins of all pages.

    Args:
        folder: where they are made, once.
        port: of the server that has the catalogues' pictures, `served`.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.served = folder, port, folder / "served"
        self.served.mkdir(parents=True)

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """A stand-in by its name, made if it is not there yet; `make` gets the path."""
        path = self.folder / "made" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
            assert path.exists(), name
        return path

    def data(self) -> Path:
        """A data set folder of `IMAGES` drawn scenes with two captions each, and the tokenizer of all."""

        def make(path: Path) -> None:
            make_data(path, IMAGES, captions=2)
            train_tokenizer(path, path / "tokenizer.json", vocab_size=320)

        return self.made("data", make)

    def world(self, kind: str) -> Path:
        """`world`, and the data set folders `train`, `val`, `test`, as `make demo` and docs/worlds.md leave them."""

        def make(path: Path) -> None:
            build_world(path / "world", SPLITS, seed=0, port=8731, name=kind)
            for split in SPLITS:
                pack(path / "world", split, path / split)
                shutil.copyfile(self.data() / "tokenizer.json", path / split / "tokenizer.json")

        return self.made(f"world_{kind}", make)

    def run(self, name: str) -> Path:
        """A run of random weights: of the preset in its name, or `tiny`, with a task where the name ends with one."""

        def make(path: Path) -> None:
            preset = next((preset for preset in PRESETS if re.fullmatch(rf"{preset}(_vqa|_caption)?", name)), "tiny")
            task = next(([f"--task={task}", "--run.weights=any"] for task in ("vqa", "caption") if name.endswith(task)), [])
            config = parse_options(["--preset", preset, *task, *SIZES])
            tokenizer = self.data() / "tokenizer.json"
            known = Tokenizer(tokenizer)
            model = with_vocabulary(config.model, known.vocab_size)
            text = dataclasses.replace(model.text, sot_id=known.sot_id, eot_id=known.eot_id)
            model = dataclasses.replace(model, text=text)
            make_run(path, model, seed=len(name), step=300, tokenizer=lambda place: shutil.copyfile(tokenizer, place))
            with open(path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": 7, "validation/loss": 4.5}) + "\n")
            (path / "run_status.json").write_text(json.dumps({"status": "completed", "step": 300}))

        return self.made(f"runs/{name}", make)


def pack(world: Path, split: str, out: Path) -> None:
    """A split of a drawn world as `build` would leave it, without a download."""
    from data_pipeline.shards.verify import verify

    regions = json.loads((world / f"{split}_regions.json").read_text())["pictures"]
    members = []
    for number, (url, shown) in enumerate(regions.items()):
        facts = {"uid": f"{number:016x}", "url": url, "caption": shown["caption"], "width": 64, "height": 64}
        picture = (world / "images" / split / url.rpartition("/")[2]).read_bytes()
        members += parts(f"{number:09d}", jpg=picture, txt=shown["caption"].encode(), json=json.dumps(facts).encode())
    write_tar(out / "shards/00000.tar", members)
    verify(out, 1)


# ---- pictures, captions, classes -----------------------------------------------------------------------------------------------


def write_photographs(folder: Path) -> None:
    """a.jpg and b.png, and the rest in a folder a class."""
    for number, name in enumerate(photographs()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = draw(SCENES[number], (5, number))
        Image.fromarray(pixels).resize((96, 80)).save(folder / name)


def photographs() -> list[str]:
    names = [f"{CLASSES[scene.label].replace(' ', '_')}/{number:03d}.jpg" for number, scene in enumerate(SCENES)]
    return ["a.jpg", "b.png", *names[2:]]


def write_table(path: Path, columns: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_captions(path: Path) -> None:
    write_table(path, ("image", "caption"), [(name, scene.caption) for name, scene in zip(photographs(), SCENES, strict=True)])


def write_classes(path: Path) -> None:
    """Of the photographs, and of the scenes in the data set folders."""
    kinds = [CLASSES[scene.label] for scene in SCENES]
    urls = [f"http://127.0.0.1:8000/test/{number:06d}.jpg" for number in range(IMAGES)]
    write_table(path, ("file", "class"), [*zip(photographs(), kinds, strict=True), *zip(urls, kinds, strict=True)])


def write_photo(path: Path) -> None:
    Image.fromarray(draw(SCENES[0], (5, 0))).save(path)


def served_urls(shelf: Shelf) -> list[tuple[str, str]]:
    """(address, caption) of the hard world's pictures behind the stage's server."""
    world, found = shelf.world("hard") / "world", []
    for url, shown in json.loads((world / "train_regions.json").read_text())["pictures"].items():
        name = url.rpartition("/")[2]
        Image.open(world / "images/train" / name).resize((256, 256)).save(shelf.served / name)
        found.append((f"http://127.0.0.1:{shelf.port}/images/{name}", shown["caption"]))
    return found


def write_cc12m(shelf: Shelf, path: Path) -> None:
    path.write_text("".join(f"{url}\t{caption}\n" for url, caption in served_urls(shelf)))


def write_relaion(shelf: Shelf, path: Path) -> None:
    path.mkdir()
    parquet(
        path / "part-00000.parquet", [{"URL": url, "TEXT": text, "WIDTH": 256, "HEIGHT": 256} for url, text in served_urls(shelf)]
    )


# ---- sets as they are published ------------------------------------------------------------------------------------------------


def write_sets(shelf: Shelf, root: Path) -> None:
    """Every set that docs/evaluation.md asks for."""
    questions.as_published(shelf.data(), root)
    for part in (root / "sets").iterdir():
        part.rename(root / part.name)
    for subset in ("sets", "val2014", "test2015"):
        shutil.rmtree(root / subset)
    for write in (
        *(captioned.write_flickr, captioned.write_mscoco, captioned.write_coco_captions, captioned.write_coco_2014),
        *(captioned.write_nocaps, classed.write_imagenet_folders, classed.write_imagenet_v2, classed.write_caltech),
        *(packed.write_cifar10, packed.write_cifar100, packed.write_stl10),
        *(listed.write_textures, listed.write_pets, listed.write_dogs, listed.write_cub, listed.write_flowers, listed.write_food),
    ):
        write(root)
    packed.write_digits(root, train=60, test=30)
    shown, templates = exported.scenes(IMAGES), ("a photo of a {c}.",)
    exported.write_wds(root / "wds_vtab-cifar100", shown, CLASSES, templates)
    exported.write_parquet(root / "my_set", shown, CLASSES)


def published(shelf: Shelf) -> Path:
    """Flickr30K's and COCO's pictures and lists, side by side."""

    def make(path: Path) -> None:
        flickr, coco = captioned.write_flickr(path), captioned.write_mscoco(path)
        for kept in ("flickr30k-images", "dataset_flickr30k.json"):
            (flickr / kept).rename(path / kept)
        (coco / "dataset_coco.json").rename(path / "dataset_coco.json")
        for picture in path.rglob("*.jpg"):
            Image.open(picture).resize((96, 80)).save(picture)

    return shelf.made("published", make)


def write_entities(path: Path) -> None:
    """Flickr30K Entities of the scenes: a caption's last word is what a box in the middle shows."""
    for name in ("Sentences", "Annotations"):
        (path / name).mkdir(parents=True)
    for number, scene in enumerate(SCENES):
        said = [scene.caption, f"picture number 1: {scene.caption}"]
        marked = [f"{caption.rpartition(' ')[0]} [/EN#1/other {caption.rpartition(' ')[2]}]\n" for caption in said]
        (path / f"Sentences/{number:06d}.txt").write_text("".join(marked))
        (path / f"Annotations/{number:06d}.xml").write_text(
            "<annotation><size><width>64</width><height>64</height><depth>3</depth></size><object><name>1</name><bndbox>"
            "<xmin>17</xmin><ymin>17</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
        )


def write_voc(path: Path) -> None:
    """PASCAL VOC's layout: in each picture one of three classes."""
    (path / "SegmentationClass").mkdir(parents=True)
    for number in range(IMAGES):
        labels = np.zeros((64, 64), np.uint8)
        labels[16:40, 16:40] = 1 + number % 3
        Image.fromarray(labels, mode="P").save(path / f"SegmentationClass/{number:06d}.png")


def write_coco(shelf: Shelf, path: Path) -> None:
    """A data set folder, and COCO's folders of pictures beside its shards."""
    shutil.copytree(shelf.data(), path)
    nearly_fitting.write_sugarcrepe(path / "crepe")
    (path / "crepe/val2017").rename(path / "val2017")
    shutil.rmtree(path / "crepe")
    for subset in ("val2014", "test2015"):
        shelf_questions(shelf, subset)[1].rename(path / subset)


def write_questions(shelf: Shelf, path: Path) -> None:
    """Questions or annotations of VQA v2 by their file's name."""
    subset = re.search(r"(train2014|val2014|test2015)", path.name)[1]
    asked, answered = shelf_questions(shelf, subset)[0].split(",")
    shutil.copyfile(asked if path.stem.endswith("questions") else answered, path)


def shelf_questions(shelf: Shelf, subset: str) -> tuple[str, Path]:
    folder = shelf.folder / f"questions_{len(list(shelf.folder.iterdir()))}"
    folder.mkdir()
    return questions.official(shelf.data(), folder, subset)


def write_sugarcrepe(path: Path) -> None:
    path.mkdir()
    nearly_fitting.write_sugarcrepe(path)


def write_winoground(path: Path) -> None:
    path.mkdir()
    nearly_fitting.write_winoground(path)


def write_aro(path: Path) -> None:
    path.mkdir()
    nearly_fitting.write_aro(path, ("on", "behind"), (("red", "round"),) * 25)


# ---- of others -----------------------------------------------------------------------------------------------------------------


def write_published_numbers(path: Path) -> None:
    path.write_text("name,pretrained,ImageNet 1k,CIFAR-10\ncoca_ViT-L-14,laion2b_s13b_b90k,0.7561,0.9722\n")


def write_datacomp(path: Path) -> None:
    path.write_text(json.dumps({"name": "runs/coca", "numbers": {"CIFAR-10": 50.5}}))


def clip_merges(path: Path) -> None:
    from tests.worlds.open_clip.world import peer

    found = peer()
    merges = Path(found[1].get("PYTHONPATH", "")) / "open_clip/bpe_simple_vocab_16e6.txt.gz" if found else None
    if merges is None or not merges.is_file():
        raise Lacking("CLIP's merges, which come with open_clip: `make peer`")
    shutil.copyfile(merges, path)


def clip_tokenizer(shelf: Shelf, path: Path) -> None:
    from data_pipeline.tokenizer.clip_bpe import ImportClipCommand

    merges = shelf.made("bpe_simple_vocab_16e6.txt.gz", clip_merges)
    ImportClipCommand(merges=merges, out=path).run()


def open_clip_weights(path: Path) -> None:
    """open_clip's folder of a small CoCa, of which pages name the weights; those of the published sizes are gigabytes."""
    from tests.worlds.open_clip.world import export_for_open_clip, random_weights

    model = parse_options(["--preset", "coca_ViT-L-14", *SIZES]).model
    export_for_open_clip(model, random_weights(model), path.parent / "open_clip").rename(path)


def evaluated(shelf: Shelf, name: str, path: Path, captioning: bool = False) -> None:
    from sycoca_ds.evaluation.command import evaluate
    from sycoca_ds.evaluation.options import EvaluateConfig

    tasks = ("retrieval", "classification", *(("captioning",) if captioning else ()))
    words = {"data": str(shelf.data()), "labels": str(labels(shelf)), "out": str(path), "tasks": tasks, "device": "cpu"}
    assert evaluate(EvaluateConfig(str(shelf.run(name)), **words)) == 0


def labels(shelf: Shelf) -> Path:
    return shelf.made("labels.json", lambda path: make_labels(path, IMAGES))


STAND_INS: dict[str, Callable[[Shelf, re.Match], Path]] = {
    r"photos": lambda shelf, found: shelf.made("photos", write_photographs),
    r"photo\.jpg": lambda shelf, found: shelf.made("photo.jpg", write_photo),
    r"captions\.csv": lambda shelf, found: shelf.made("captions.csv", write_captions),
    r"dataset_(flickr30k|coco)\.json|flickr30k-images|coco": lambda shelf, found: published(shelf) / found[0],
    r"classes\.csv": lambda shelf, found: shelf.made("classes.csv", write_classes),
    r"labels\.json": lambda shelf, found: labels(shelf),
    r"cc12m\.tsv": lambda shelf, found: shelf.made("cc12m.tsv", lambda path: write_cc12m(shelf, path)),
    r"catalogues/relaion": lambda shelf, found: shelf.made("relaion", lambda path: write_relaion(shelf, path)),
    r"mirror|mirrors/cc12m-wds": lambda shelf, found: shelf.made("mirror", lambda path: write_mirror(path, each=24)),
    r"data/sets": lambda shelf, found: shelf.made("sets", lambda path: (path.mkdir(), write_sets(shelf, path))),
    r"data/Flickr30kEntities": lambda shelf, found: shelf.made("entities", write_entities),
    r"data/VOC2012": lambda shelf, found: shelf.made("voc", write_voc),
    r"data/stanford-corenlp-[\w-]+": lambda shelf, found: shelf.made("corenlp", write_jars),
    r"data/sugar-crepe": lambda shelf, found: shelf.made("sugarcrepe", write_sugarcrepe),
    r"data/winoground": lambda shelf, found: shelf.made("winoground", write_winoground),
    r"data/aro": lambda shelf, found: shelf.made("aro", write_aro),
    r"data/coco": lambda shelf, found: shelf.made("coco", lambda path: write_coco(shelf, path)),
    r"data/(cc12m|cc3m|relaion)": lambda shelf, found: shelf.world("hard") / "train",
    r"data/coyo": lambda shelf, found: shelf.world("demo") / "train",
    r"data/(photos|heldout|flickr30k|voc|coco_train|train|test)": lambda shelf, found: shelf.data(),
    r"v2_\w+\.json": lambda shelf, found: shelf.made(found[0], lambda path: write_questions(shelf, path)),
    r"runs/(demo|hard)/data/(train|val|test)|runs/(hard)/(train|val|test)": lambda shelf, found: (
        shelf.world(found[1] or found[3]) / (found[2] or found[4])
    ),
    r"runs/(demo|hard)/world": lambda shelf, found: shelf.world(found[1]) / "world",
    r"runs/(demo|hard)/run": lambda shelf, found: shelf.run("tiny"),
    r"runs/(a|b|coca|sycoca|other)/eval": lambda shelf, found: shelf.made(
        f"{found[1]}/eval", lambda path: evaluated(shelf, found[1], path)
    ),
    r"runs/coca/datacomp/datacomp\.json": lambda shelf, found: shelf.made("datacomp.json", write_datacomp),
    r"runs/((?:930m|base|coca_base)(?:_vqa|_caption)?)": lambda shelf, found: shelf.run(found[1]),
    r"openclip_results\.csv": lambda shelf, found: shelf.made("openclip_results.csv", write_published_numbers),
    r"bpe_simple_vocab_16e6\.txt\.gz": lambda shelf, found: shelf.made(found[0], clip_merges),
    r"clip\.json": lambda shelf, found: shelf.made("clip.json", lambda path: clip_tokenizer(shelf, path)),
    r"open_clip_model\.safetensors": lambda shelf, found: shelf.made("theirs", open_clip_weights) / found[0],
    r"open_clip_config\.json": lambda shelf, found: shelf.made("theirs", open_clip_weights) / found[0],
}
EXACT: dict[str, Callable[[Shelf], dict[str, Path]]] = {
    "runs": lambda shelf: {
        "runs/930m": shelf.run("930m"),
        "runs/base": shelf.run("base"),
        "runs/base/eval": shelf.made("base/eval", lambda path: evaluated(shelf, "base", path, captioning=True)),
    },
}
"""Words that are whole."""


def provide(shelf: Shelf, stage: Path, words: list[str]) -> None:
    """Copies into the stage what these words name and is not there. Raises `Lacking`."""
    for part in (part for word in words for part in re.split(r"[=,]", word)):
        place = part.removeprefix("@").removeprefix("file://").removeprefix(f"{stage}/")
        for where, source in EXACT[place](shelf).items() if place in EXACT else ():
            copy(source, stage / where)
        for pattern, source in STAND_INS.items():
            found = re.match(rf"(?:{pattern})(?=/|$)", place)
            if found and not (stage / found[0]).exists():
                copy(source(shelf, found), stage / found[0])


def copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
