"""Every task on a trained model: the hard world written in each official layout, and what has to be reached.

Training takes minutes. SYCOCA_HARD=FOLDER takes a world, its data and runs that are there already, FOLDER/world, FOLDER/train,
FOLDER/test, FOLDER/run and FOLDER/vqa, as docs/worlds.md and docs/finetuning.md make them.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from sycoca_ds.eval.collection import Collection
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds import REPOSITORY
from tests.worlds.processes.watching import wait_until
from tests.worlds.published.exported import Shown, write_parquet, write_wds

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(7200)]
PORT, STEPS, QUESTION_STEPS = 8731, 600, 120
RETRIEVED, SHOWN = 500, 300
"""Test pictures for retrieval, and for what takes longer."""
ASKED = 150
"""Test pictures with questions."""
TAUGHT, CHOSEN = 600, 200
"""Training pictures of the probe, and those that C is chosen on."""


def answers(port: int) -> bool:
    """A server there replies: its port is taken before it has drawn what it will serve."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("HEAD", "/")
        return connection.getresponse().status > 0
    except OSError:
        return False
    finally:
        connection.close()


def python(*words: object) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True, timeout=5400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """world/, train/, test/ and run/, as docs/worlds.md has it, and vqa/, the run fine-tuned for questions."""
    given = os.environ.get("SYCOCA_HARD")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("hard")
    scenes = [
        sys.executable,
        "-m",
        "data_pipeline",
        "scenes",
        "--world",
        "hard",
        "--out",
        str(folder / "world"),
        "--train",
        "32000",
    ]
    server = subprocess.Popen([*scenes, "--port", str(PORT)], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: answers(PORT), 600)
        for split in ("train", "test"):
            where = ["--metadata", folder / f"world/catalogue/{split}.parquet", "--out", folder / split]
            how = ["--allow-host", f"127.0.0.1:{PORT}", "--proxy", "none", "--image-size", 64, "--shard-size", 1000, "--timeout", 3]
            python("-m", "data_pipeline", "build", "--source", "laion2b", *where, *how)
    finally:
        server.terminate()
        server.wait(60)
    tokens = folder / "train/tokenizer.json"
    python("-m", "data_pipeline", "tokenizer", "train", "--data", folder / "train", "--out", tokens, "--vocab-size", 512)
    data = ["--data.train", folder / "train", "--run.out", folder / "run"]
    fp32 = ["--preset", "tiny", "--run.precision", "fp32"]
    python("sycoca_ds/train.py", *fp32, *data, "--optim.steps", STEPS, "--optim.lr", "5e-4")
    data = ["--data.train", folder / "train", "--run.out", folder / "vqa"]
    data += ["--data.questions", folder / "world/train_questions.json"]
    steps = ["--optim.epochs", "None", "--optim.steps", QUESTION_STEPS, "--optim.global-batch-size", 64, "--optim.lr", "1e-3"]
    weights = ["--run.weights", folder / "run", "--optim.warmup-steps", 10]
    python("sycoca_ds/train.py", *fp32, "--task", "vqa", *weights, *data, *steps)
    return folder


def pictures_of(hard: Path, split: str, count: int) -> list[Shown]:
    """The first pictures of a data set folder with captions and classes; those without a class are left out."""
    collection, found = Collection(hard / split, 48), []
    labels = json.loads((hard / f"world/{split}_labels.json").read_text())["labels"]
    for number, picture in enumerate(collection.pictures):
        with open(picture.shard, "rb") as file:
            file.seek(picture.offset)
            data = file.read(picture.size)
        if picture.url in labels and len(found) < count:
            found.append(Shown(data, labels[picture.url], tuple(collection.captions_of_image[number])))
    return found


def write_karpathy(folder: Path, shown: Sequence[Shown]) -> None:
    images = folder / "flickr30k-images"
    images.mkdir(parents=True)
    entries = []
    for number, picture in enumerate(shown):
        (images / f"{number}.jpg").write_bytes(picture.picture)
        said = [{"raw": caption} for caption in picture.captions]
        entries.append({"filename": f"{number}.jpg", "split": "test", "sentences": said})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))


def write_nocaps(folder: Path, shown: Sequence[Shown]) -> None:
    (folder / "val").mkdir(parents=True)
    domains = ("in-domain", "near-domain", "out-domain")
    images, annotations = [], []
    for number, picture in enumerate(shown):
        (folder / f"val/{number}.jpg").write_bytes(picture.picture)
        images.append({"id": number, "file_name": f"{number}.jpg", "domain": domains[number % 3]})
        annotations += [{"id": len(annotations), "image_id": number, "caption": caption} for caption in picture.captions]
    content = {"images": images, "annotations": annotations}
    (folder / "nocaps_val_4500_captions.json").write_text(json.dumps(content))


def write_wnids(folder: Path, shown: Sequence[Shown]) -> None:
    """ImageNet-R's folders: a WordNet id a class."""
    for number, picture in enumerate(shown):
        place = folder / wnid(picture.label)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"image_{number:04d}.jpg").write_bytes(picture.picture)


def wnid(label: int) -> str:
    return f"n{label:08d}"


def write_dtd(folder: Path, splits: dict[str, Sequence[Shown]], classes: Sequence[str]) -> None:
    (folder / "labels").mkdir(parents=True)
    for split, shown in splits.items():
        names = []
        for number, picture in enumerate(shown):
            name = f"{classes[picture.label]}/{split}_{number:04d}.jpg"
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(picture.picture)
            names.append(name)
        (folder / f"labels/{split}1.txt").write_text("\n".join(names) + "\n")


def write_vqa(folder: Path, world: Path, pictures: int) -> None:
    """VQA v2's files and COCO's pictures; one answer counts as ten. Without numbers: candidates are normalised, "3", and
    what ten people say alike, "three", is not."""
    (folder / "val2014").mkdir(parents=True)
    asked = json.loads((world / "test_questions.json").read_text())["questions"]
    questions, annotations = [], []
    for number, entry in enumerate(asked):
        image = int(PurePosixPath(entry["url"]).stem)
        if image < pictures and entry["kind"] != "count":
            told = {"question_id": number, "image_id": image}
            questions.append({**told, "question": entry["question"]})
            answers = [{"answer": entry["answer"], "answer_id": at} for at in range(1, 11)]
            kind = "yes/no" if entry["answer"] in ("yes", "no") else "other"
            said = {"question_type": entry["kind"], "answer_type": kind, "multiple_choice_answer": entry["answer"]}
            annotations.append({**told, **said, "answers": answers})
            path = folder / f"val2014/COCO_val2014_{image:012d}.jpg"
            if not path.exists():
                shutil.copyfile(world / "images/test" / f"{image:06d}.jpg", path)
    for name, part in (("OpenEnded_mscoco_val2014_questions", "questions"), ("mscoco_val2014_annotations", "annotations")):
        content = {"data_subtype": "val2014", part: questions if part == "questions" else annotations}
        (folder / f"v2_{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def found(hard: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """{set: its tasks}, of one evaluation on all layouts and one on the world's own folder."""
    folder = tmp_path_factory.mktemp("official")
    sets, out = folder / "sets", folder / "out"
    said = json.loads((hard / "world/test_labels.json").read_text())
    classes, templates = said["classes"], said["templates"][:20]
    shown, few = pictures_of(hard, "test", RETRIEVED), pictures_of(hard, "test", SHOWN)
    taught = pictures_of(hard, "train", TAUGHT + CHOSEN)
    write_karpathy(sets / "flickr30k", shown)
    write_nocaps(sets / "nocaps", few)
    write_wnids(sets / "imagenet-r", few)
    write_dtd(sets / "dtd", {"train": taught[:TAUGHT], "val": taught[TAUGHT:], "test": few}, classes)
    write_wds(sets / "wds_hard", few, classes, templates, per_shard=100)
    write_parquet(sets / "hard_captions", shown, captioned=True, per_group=100)
    names = {wnid(label): name for label, name in enumerate(classes)}
    (folder / "prompts.json").write_text(json.dumps({"imagenet_r": {"classes": names, "templates": templates}}))
    words = {"device": "cpu", "precision": "fp32", "batch_size": 100, "cache": str(folder / "cache")}
    asked = ("flickr30k", "nocaps", "imagenet_r", "dtd", "wds:hard", "parquet:hard_captions")
    more = {"sets": asked, "prompts": str(folder / "prompts.json"), "data_root": str(sets)}
    assert evaluate(EvaluateConfig(str(hard / "run"), out=str(out), **more, **words)) == 0
    crepe = f"sugarcrepe={hard / 'world/test_sugarcrepe'},{hard / 'world/images/test'}"
    more = {"regions": str(hard / "world/test_regions.json"), "tasks": ("alignment", "compositionality", "masking")}
    own = EvaluateConfig(str(hard / "run"), str(hard / "test"), out=str(out / "own"), compositions=(crepe,), **more, **words)
    assert evaluate(own) == 0
    write_vqa(sets / "vqa_v2", hard / "world", ASKED)
    more = {"data_root": str(sets), "sets": ("vqa_v2",), "answer_count": 1}
    assert evaluate(EvaluateConfig(str(hard / "vqa"), out=str(out), **more, **words)) == 0
    results = {path.parent.name: json.loads(path.read_text())["tasks"] for path in out.glob("*/results.json")}
    keep = os.environ.get("SYCOCA_HARD_OUT")
    if keep:
        shutil.copytree(out, keep)
    return results


def test_retrieval(found: dict[str, dict]) -> None:
    """Of 500; chance 0.2 %. The same pictures in a parquet folder give the same numbers."""
    numbers = found["flickr30k"]["retrieval"]["metrics"]
    assert numbers["i2t_r1"] > 25 and numbers["t2i_r1"] > 25 and numbers["i2t_r10"] > 70
    assert found["parquet_hard_captions"]["retrieval"]["metrics"] == pytest.approx(numbers)


def test_classification(found: dict[str, dict]) -> None:
    """Ten shapes; chance 10 %."""
    numbers = found["imagenet_r"]["classification"]["metrics"]
    assert numbers["top1"] > 20 and numbers["mean_per_class"] > 20
    assert found["wds_hard"]["classification"]["metrics"]["top1"] == pytest.approx(numbers["top1"])


def test_a_linear_probe(found: dict[str, dict]) -> None:
    numbers = found["dtd"]["linear_probe"]["metrics"]
    assert numbers["top1"] > 40 > 20 > numbers["top1_shuffled"]


def test_captions(found: dict[str, dict]) -> None:
    """Above what another picture's captions would get, in every domain."""
    numbers = found["nocaps"]["captioning"]["metrics"]
    assert numbers["cider"] > 0.8 and numbers["cider"] > 1.5 * numbers["cider_shuffled"]
    assert all(numbers[f"{domain}_domain_cider"] > 0.6 for domain in ("in", "near", "out"))


def test_compositions(found: dict[str, dict]) -> None:
    """Chance 50 %. Relations and swapped objects, which differ by where things lie, are not learned in so few steps."""
    numbers = found["own"]["compositionality"]["metrics"]
    for kind, cosine, gain in (("replace_att", 85, 75), ("replace_obj", 70, 55), ("swap_att", 62, 62), ("add_obj", 75, 75)):
        assert numbers[f"sugarcrepe_{kind}_cosine"] > cosine and numbers[f"sugarcrepe_{kind}_gain"] > gain, kind


def test_pointing(found: dict[str, dict]) -> None:
    """At what the own words name, more than another caption's words and than chance."""
    record = found["own"]["alignment"]
    numbers = record["metrics"]
    assert numbers["pointing"] > 3 * record["chance"]["pointing"] and numbers["pointing"] > 1.5 * numbers["other_pointing"]
    assert numbers["objects_miou"] > 5 * numbers["shuffled_objects_miou"]


def test_questions(found: dict[str, dict]) -> None:
    """More than who does not look, and than the usual answer to such a question."""
    numbers = found["vqa_v2"]["vqa"]["metrics"]
    blind = max(numbers[f"accuracy_{name}"] for name in ("usual", "other_picture", "blind"))
    assert numbers["accuracy"] > 1.15 * blind and numbers["accuracy"] > 3 * numbers["accuracy_shuffled"]
