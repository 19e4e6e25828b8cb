"""The runs behind the ablation tables: what each one is, what of it lies finished on the disk, and the commands that make the rest.

OUT/ROW/seed_S/ is a run folder of train.py, with logs/, eval/SET/ (folders of evaluate.py) and ablation.json (every start) inside.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from data_pipeline.shards.manifest import Manifest
from sycoca_ds.ablations.compute import equal_steps
from sycoca_ds.ablations.following import Following
from sycoca_ds.ablations.report import columns_of
from sycoca_ds.ablations.tables import CLASSIFICATION_ONLY, ROWS, Row, configurations, row_options, trained_as
from sycoca_ds.config import DataConfig, ImageEncoderConfig, TrainConfig, with_vocabulary
from sycoca_ds.data.question_sources import QuestionSources
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.compositions.items import CompositionSet
from sycoca_ds.eval.compositions.reading import read_compositions
from sycoca_ds.eval.labels import LabelSet, load_labels
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.regions.patches import Regions, read_regions
from sycoca_ds.eval.runner.bench import Inputs
from sycoca_ds.eval.suite import finished_task, task_key
from sycoca_ds.eval.vqa.items import Asked, Request
from sycoca_ds.evaluation.options import EvaluateConfig, choose_device, choose_precision
from sycoca_ds.launch.processes import REPOSITORY
from sycoca_ds.options import changed_fields, from_dict, parse_options, read_json_object

STARTS_FILE = "ablation.json"


@dataclass(frozen=True)
class EvaluationSet:
    """One data set folder that every run is evaluated on."""

    name: str
    data: Path
    labels: Path | None
    tasks: tuple[str, ...]
    digest: str
    """Of its manifest."""
    label_set: LabelSet | None
    regions: Path | None = None
    """What the masks are measured on."""
    compositions: str = ""
    """As evaluate.py's --compositions takes it; "" for none."""
    questions: str = ""
    """As its --questions takes it, for what was trained on questions."""
    prefix: str = ""
    """Of the columns' names."""

    @property
    def title(self) -> str:
        return f"{self.name}{self.prefix}"

    @property
    def columns(self) -> list[str]:
        return columns_of(self.title, self.tasks)


def parse_set(text: str, captioning: bool) -> EvaluationSet:
    """`NAME=DATA_DIR` or `NAME=DATA_DIR,LABELS.json`.

    Raises:
        UserError: not of this form, no data set there, labels of another data set, or a set of the paper's classification columns
            without labels.
    """
    name, _, places = text.partition("=")
    data, _, labels = (places, "", "") if Path(places).is_dir() else places.rpartition(",")
    data, labels = (data, labels) if data else (labels, "")
    if not name or not data or set(name) & set("/| \t"):
        raise UserError(f"--evaluate {text}: expected NAME=DATA_DIR or NAME=DATA_DIR,LABELS.json, NAME without spaces, / and |")
    manifest = Manifest.load(data)
    label_set = load_labels(labels) if labels else None
    if label_set is not None:
        urls = (url for shard in range(len(manifest.shards)) for url in manifest.index(shard, ["url"])["url"].to_pylist())
        if not any(url in label_set.labels for url in urls):
            raise UserError(
                f"--evaluate {text}: {labels} labels none of the images in {data}; give the label file of this data set"
            )
    if name in CLASSIFICATION_ONLY and label_set is None:
        raise UserError(
            f"--evaluate {text}: the paper's column {name} is classification, which needs labels: {name}=DATA_DIR,LABELS.json"
        )
    tasks = () if name in CLASSIFICATION_ONLY else ("retrieval",)
    tasks += ("classification",) if label_set is not None else ()
    tasks += ("captioning",) if captioning and name not in CLASSIFICATION_ONLY else ()
    return EvaluationSet(
        name, Path(data).absolute(), Path(labels).absolute() if labels else None, tasks, manifest.digest, label_set
    )


def of_sets(option: str, texts: Sequence[str], sets: Sequence[EvaluationSet]) -> dict[str, str]:
    """{NAME: value} of NAME=VALUE. Raises `UserError`: no evaluation set has that name."""
    places = {name: place for name, _, place in (text.partition("=") for text in texts)}
    for name, place in places.items():
        if not place or name not in [chosen.name for chosen in sets]:
            raise UserError(f"{option} {name}={place}: no evaluation set has that name; expected NAME=.. of a set in --evaluate")
    return places


def parse_sets(
    texts: Sequence[str],
    captioning: bool,
    regions: Sequence[str] = (),
    compositions: Sequence[str] = (),
    questions: Sequence[str] = (),
) -> list[EvaluationSet]:
    """Raises `UserError` also for no set at all, two of one name, or regions, compositions or questions of no set."""
    if not texts:
        raise UserError("--evaluate is not set: without an evaluation set there is no number; give NAME=DATA_DIR[,LABELS.json] ...")
    sets = [parse_set(text, captioning) for text in texts]
    for number, chosen in enumerate(sets):
        if chosen.name in [other.name for other in sets[:number]]:
            raise UserError(f"--evaluate {texts[number]}: the name {chosen.name} is given twice; each set needs a name of its own")
    for name, place in of_sets("--regions", regions, sets).items():
        if not Path(place).exists():
            raise UserError(f"--regions {name}={place}: no such file or folder")
    places = {name: Path(place).absolute() for name, place in of_sets("--regions", regions, sets).items()}
    nearly, asked = of_sets("--compositions", compositions, sets), of_sets("--questions", questions, sets)
    found = []
    for chosen in sets:
        tasks = (*chosen.tasks, *(["masking"] if chosen.name in places else []))
        tasks += ("compositionality",) if chosen.name in nearly else ()
        more = {"compositions": nearly.get(chosen.name, ""), "questions": asked.get(chosen.name, "")}
        found.append(replace(chosen, regions=places.get(chosen.name), tasks=tasks, **more))
        compositions_of(more["compositions"])  # what is not there is told before any work
        if more["questions"]:
            asked_of(more["questions"], chosen.data)
    return found


@lru_cache(maxsize=8)
def regions_of(path: Path, data: Path, tokenizer: Path, image: ImageEncoderConfig, context_length: int) -> Regions:
    """The regions of a set for a model. Raises `UserError`."""
    collection = Collection(data, image.image_size)
    return read_regions(path, collection, Tokenizer(tokenizer), image.patch_size, context_length)


@lru_cache(maxsize=8)
def compositions_of(text: str) -> tuple[CompositionSet, ...]:
    """Raises `UserError`."""
    return read_compositions([text] if text else [])


@lru_cache(maxsize=8)
def asked_of(questions: str, data: Path) -> Asked:
    """Raises `UserError`."""
    return Request(questions).open(Collection(data, 1))


@dataclass(frozen=True)
class Run:
    """One configuration with one seed, or what goes on from its weights."""

    row: str
    """Name of the row it is trained as."""
    seed: int
    folder: Path
    options: tuple[str, ...]
    """What train.py is given."""
    config: TrainConfig
    """What that means."""
    following: Following | None = None
    """What goes on from the weights of the run whose folder this one's lies in; None: it is that run."""

    @property
    def name(self) -> str:
        return self.row if self.following is None else f"{self.row} {self.following.name}"

    @property
    def title(self) -> str:
        return f"{self.name} seed {self.seed}"

    def serves(self, rows: Sequence[Row]) -> list[str]:
        """The rows among `rows` whose numbers this run gives."""
        return [row.name for row in rows if trained_as(row) == self.row]


def sets_of(run: Run, sets: Sequence[EvaluationSet]) -> list[EvaluationSet]:
    """What a run is evaluated on."""
    if run.following is None:
        return list(sets)
    task = run.following.task
    alone = {"labels": None, "label_set": None, "regions": None, "compositions": "", "prefix": f" {run.following.name}"}
    return [
        replace(chosen, tasks=(task,), **alone) for chosen in sets if (chosen.questions if task == "vqa" else task in chosen.tasks)
    ]


def plan_runs(
    rows: Sequence[Row],
    seeds: Sequence[int],
    out: Path,
    train_options: Sequence[str],
    equal_compute: str = "",
    followings: Sequence[Following] = (),
) -> list[Run]:
    """All rows with the first seed, then all with the next: whole tables as early as possible. What goes on from a run's weights
    follows that run.

    Args:
        equal_compute: name of a row: each row trains for as many steps as cost what that one's do.
        followings: what goes on from the weights of each run that captions.

    Raises:
        UserError: an option that a row or this command sets itself, bad options, bad seeds, no such row.
    """
    if equal_compute and equal_compute not in ROWS:
        raise UserError(f"--equal-compute {equal_compute}: no such row{nearest(equal_compute, list(ROWS))}")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: expected different whole numbers from 0")
    owners = {"run.out": "--out", "run.seed": "--seeds"}
    for row in rows:
        owners |= {field: f"each row of the tables ({row.name}: {value})" for field, value in row.fields if field not in owners}
    for word in train_options:
        field = word.removeprefix("--").split("=")[0].replace("-", "_")
        if word.startswith("--") and field in owners:
            raise UserError(f"{word.split('=')[0]} is set by {owners[field]}: take it out of the options after --")
    runs = []
    for seed in seeds:
        for row in configurations(rows):
            folder = out.absolute() / row.name / f"seed_{seed}"
            options = [*train_options, *row_options(row)]
            options += equal_steps(row, ROWS[equal_compute], train_options) if equal_compute else []
            words = (*options, "--run.seed", str(seed), "--run.out", str(folder))
            config = parse_options(list(words))
            runs.append(Run(row.name, seed, folder, words, config))
            for following in followings if config.model.captions else ():
                inside = folder / following.folder
                words = (*options, *following.words(folder, config), "--run.seed", str(seed), "--run.out", str(inside))
                runs.append(Run(row.name, seed, inside, words, parse_options(list(words)), following))
    return runs


def saved_config(folder: Path) -> TrainConfig | None:
    """What the run in a folder was started with, if it came that far."""
    path = folder / "config.json"
    return from_dict(TrainConfig, read_json_object(path, "run configuration"), str(path)) if path.is_file() else None


def found_precision(out: Path) -> str | None:
    """The precision the first run under `out` has found with `auto`. On a CPU that is a measurement, which may end differently an
    hour later: all runs of one table must use the same."""
    for path in sorted(out.absolute().glob("*/seed_*/config.json")):
        return saved_config(path.parent).run.precision
    return None


def check_same(run: Run, precision: str | None) -> bool:
    """Whether the run has been started before.

    Raises:
        UserError: with other fields than this command's, of those that change its weights or losses.
    """
    saved = saved_config(run.folder)
    if saved is None:
        return False
    found = {"run.precision": precision or saved.run.precision} if run.config.run.precision == "auto" else {}
    settled = with_vocabulary(run.config.model, saved.model.text.vocab_size, saved.model.masking.left_out_ids or ())
    changes = changed_fields(dataclasses.asdict(saved), dataclasses.asdict(replace(run.config, model=settled)), found)
    other = [f"{name} = {old} (now {new})" for name, (old, new) in changes.items()]
    if other:
        raise UserError(
            f"{run.folder} was trained with {', '.join(other)}: give the options of then, or another --out, or delete that folder"
        )
    return True


@lru_cache(maxsize=4)
def questions_digest(data: DataConfig) -> str:
    """Of pictures and questions; reading these takes seconds. Raises `UserError`."""
    return QuestionSources.of(data, check_tars=False).digest


def data_digest(config: TrainConfig) -> str:
    """Of what a run trains on. Raises `UserError`."""
    return questions_digest(config.data) if config.task == "vqa" else Sources.of(config.data, check_tars=False).digest


def final_checkpoint(run: Run) -> Path | None:
    """The checkpoint of a finished training, else None.

    Raises:
        UserError: finished, but its checkpoint is gone, or it was trained on other data than there now is.
    """
    from sycoca_ds.engine.checkpoint.seal import STATE_FILE, read_state

    try:
        status = json.loads((run.folder / "run_status.json").read_text())
        if status["status"] != "completed":
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # unreadable is the same as absent
    folder = run.folder / "checkpoints" / f"step_{status['step']:08d}"
    if not (folder / STATE_FILE).is_file():
        raise UserError(f"{run.folder} is trained, but its checkpoint {folder} is gone: restore it, or delete the run's folder")
    saved, digest = read_state(folder)["manifest_digest"], data_digest(run.config)
    if saved != digest:
        raise UserError(
            f"{run.folder} was trained on other data (manifest {saved[:12]}) than {' '.join(run.config.data.train)} now holds "
            f"({digest[:12]}): restore the data, or give another --out"
        )
    return folder


def finished_evaluation(run: Run, chosen: EvaluationSet) -> dict[str, Any] | None:
    """results.json of the run on a set if evaluate.py would reuse every task of it, by its own rule."""
    from data_pipeline.files import sha256_file
    from sycoca_ds.engine.checkpoint.seal import STATE_FILE

    checkpoint, out = final_checkpoint(run), run.folder / "eval" / chosen.name
    if checkpoint is None:
        return None
    default = EvaluateConfig("", out="")  # whatever evaluate_command does not set
    values = {item.name: getattr(default, item.name) for item in dataclasses.fields(SuiteOptions)}
    precision = choose_precision(default.precision, choose_device(default.device))
    regions = None
    if chosen.regions is not None:
        model = run.config.model
        regions = regions_of(chosen.regions, chosen.data, run.folder / "tokenizer.json", model.image, model.text.context_length)
    options = SuiteOptions(**values | {"tasks": chosen.tasks, "precision": precision})
    asked = asked_of(chosen.questions, chosen.data) if "vqa" in chosen.tasks else None
    inputs = Inputs(options, chosen.label_set, regions, compositions_of(chosen.compositions), questions=asked)
    digest = sha256_file(checkpoint / STATE_FILE)
    try:
        results = json.loads((out / "results.json").read_text())
        for task in chosen.tasks:
            key, record = task_key(task, digest, chosen.digest, inputs), results["tasks"][task]
            if record["key"] != key or (record["status"] == "done" and finished_task(out, task, key) is None):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # unreadable is the same as absent
    return results


def train_command(launch: Sequence[str], run: Run, precision: str | None) -> list[str]:
    fixed = ["--run.precision", precision] if precision and run.config.run.precision == "auto" else []
    return [*launch, str(REPOSITORY / "sycoca_ds/train.py"), *run.options, *fixed]


def evaluate_command(run: Run, chosen: EvaluationSet, checkpoint: Path | str) -> list[str]:
    labels = ["--labels", str(chosen.labels)] if chosen.labels else []
    labels += ["--regions", str(chosen.regions)] if chosen.regions else []
    labels += ["--compositions", chosen.compositions] if chosen.compositions else []
    labels += ["--questions", chosen.questions] if "vqa" in chosen.tasks else []
    where = ["--checkpoint", str(checkpoint), "--data", str(chosen.data), *labels, "--out", str(run.folder / "eval" / chosen.name)]
    return [sys.executable, str(REPOSITORY / "sycoca_ds/evaluate.py"), *where, "--tasks", *chosen.tasks]


def read_starts(run: Run) -> list[dict[str, Any]]:
    """Every start of the training: command, date, git_sha, versions, hardware; seconds where it came to its end."""
    try:
        return json.loads((run.folder / STARTS_FILE).read_text())["starts"]
    except (OSError, ValueError, KeyError):
        return []


def write_starts(run: Run, starts: list[dict[str, Any]]) -> None:
    write_json(run.folder / STARTS_FILE, {"row": run.name, "seed": run.seed, "starts": starts})
