"""`evaluate.py`: one checkpoint, or each of a run, on a data set folder or on sets as they are published."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from data_pipeline.files import check_folder
from sycoca_ds.evaluation.options import EvaluateConfig
from sycoca_ds.evaluation.ranks import join_ranks

if TYPE_CHECKING:
    from sycoca_ds.eval.labels import LabelSet
    from sycoca_ds.eval.probe.data import ProbeData
    from sycoca_ds.eval.vqa.items import Request


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str | Path | None,
    labels: str | Path | None,
    out: str | Path,
    options,
    device,
    command: Sequence[str] = (),
    *,
    regions: str | Path | None = None,
    compositions: Sequence[str] = (),
    probe_train: str | Path | None = None,
    probe_labels: str | Path | None = None,
    questions: Any = None,
    ema: bool = False,
    shard: str = "auto",
    board: str | None = None,
    resources=None,
) -> tuple[dict | None, Any, Any]:
    """Opens a checkpoint and runs the suite on it: results.json's content, the collection, the opened checkpoint.

    Args:
        options: `SuiteOptions`.
        device: `torch.device`.
        compositions: NAME=FOLDER[,PICTURES] of benchmarks.
        probe_train, probe_labels: folder and labels to train a linear probe on.
        questions: `sycoca_ds.eval.vqa.items.Request`.
        ema: of the moving average of the checkpoint's weights.
        shard: whether ranks share the weights, see `open_checkpoint`.
        board: TensorBoard's folder, which is for weights whose step is known.
        resources: `Resources`; default one rank, nothing kept but finished tasks.

    Raises:
        UserError: no or damaged checkpoint, no average in it, no or damaged data, bad labels, benchmarks that are not there; before
            anything is evaluated, a board for weights of an unknown step.
    """
    from sycoca_ds.eval.runner.bench import Resources
    from sycoca_ds.eval.suite import evaluate_model

    resources = resources or Resources()
    probing = {"probe_train": probe_train, "probe_labels": probe_labels}
    label_set, loaded, probe = opened(checkpoint, labels, options, device, resources, ema=ema, shard=shard, board=board, **probing)
    more = {
        "regions": regions,
        "compositions": compositions,
        "probe": probe,
        "questions": questions,
        "ema": ema,
        "resources": resources,
    }
    results, collection = evaluate_model(loaded, checkpoint, data, label_set, out, options, device, command, **more)
    return results, collection, loaded


def opened(
    checkpoint: str | Path,
    labels: str | Path | None,
    options,
    device,
    resources,
    *,
    probe_train: str | Path | None,
    probe_labels: str | Path | None,
    ema: bool,
    shard: str,
    board: str | None,
) -> tuple[LabelSet | None, Any, ProbeData | None]:
    """(the labels, the checkpoint, what a linear probe is trained on); arguments and errors as of `evaluate_checkpoint`."""
    from sycoca_ds.eval.labels import load_labels
    from sycoca_ds.eval.probe.data import own_probe_data
    from sycoca_ds.eval.report.numbers import check_step
    from sycoca_ds.evaluation.sharding import open_checkpoint

    with resources.team.together():
        label_set = load_labels(labels) if labels else None
    loaded = open_checkpoint(checkpoint, device, resources.team, ema=ema, shard=shard)
    with resources.team.together():
        check_step(board, loaded.state["step"])
        probe = None
        if probe_train is not None and "linear_probe" in options.tasks:
            probe = own_probe_data(probe_train, probe_labels, label_set, loaded.config.model.image.image_size)
    return label_set, loaded, probe


def evaluate(config: EvaluateConfig) -> int:
    """Runs everything; 0, or 1 if a requirement is not met or a set has no numbers that was asked for."""
    from sycoca_ds.eval.runner.bench import Resources
    from sycoca_ds.eval.runner.cache import Cache
    from sycoca_ds.eval.suite import check_options
    from sycoca_ds.evaluation.sharding import fresh_weights

    team, device = join_ranks(config.device)
    options = config.suite_options(device)
    check_options(options)
    if config.cache_gb <= 0:
        raise UserError(f"--cache-gb {config.cache_gb:g}: expected more than 0; --cache off keeps nothing")
    check_folder(Path(config.out))
    folder = None if config.cache == "off" else Path(config.cache or Path(config.out) / "cache")
    resources = Resources(team, Cache(folder, int(config.cache_gb * 1e9)), partial(fresh_weights, team))
    if (config.checkpoint is None) == (config.watch is None):
        raise UserError("expected --checkpoint RUN, or --watch RUN for all of its checkpoints; one of them")
    if config.watch is None:
        status = evaluate_one(config, options, device, resources)
    else:
        status = watch_run(config, options, device, resources)
    if team.leads and folder is not None:
        print(f"cache:   {folder}, {resources.cache.trim() / 1e9:.3f} GB", flush=True)
    return status


def watch_run(config: EvaluateConfig, options, device, resources) -> int:
    """Every checkpoint of a run; 0 when it is completed, 1 if a set has no numbers that was asked for."""
    from sycoca_ds.evaluation.watch import Watch, stamps_of

    alone = [name for name in ("require", "report") if getattr(config, name)]
    if alone:
        raise UserError(f"--{alone[0]} goes with --checkpoint, not with --watch")
    board = config.tensorboard or str(Path(config.out) / "tensorboard")

    def evaluate_step(folder: Path, out: Path) -> int:
        one = dataclasses.replace(config, checkpoint=str(folder), watch=None, out=str(out), tensorboard=board)
        return evaluate_one(one, options, device, resources)

    asked = {**dataclasses.asdict(config), "precision": options.precision}
    if resources.team.leads:
        asked["stamps"] = stamps_of(config)
    watch = Watch(Path(config.watch), Path(config.out), asked, resources, evaluate_step)
    if config.dry_run:
        if resources.team.leads:
            print(watch.plan(), flush=True)
        return 0
    return watch.run(config.watch_seconds)


def evaluate_one(config: EvaluateConfig, options, device, resources) -> int:
    """One checkpoint, on all that was asked for."""
    from data_pipeline.files import write_json
    from sycoca_ds.eval.registry import METRICS
    from sycoca_ds.eval.report.numbers import rows_of, write_scalars
    from sycoca_ds.eval.report.page import write_report
    from sycoca_ds.eval.report.terminal import print_table
    from sycoca_ds.eval.requirements import check_names, judge, parse_requirement
    from sycoca_ds.eval.vqa.items import Request

    questions = None
    if config.questions is not None:
        questions = Request(config.questions, config.answers, config.answer_count, config.answering, config.rank_first)
    if questions is not None and questions.pictures is not None:
        if config.data is not None or config.data_root is not None:
            raise UserError(f"--questions {config.questions}: with a folder of pictures neither --data nor --data-root is taken")
        options = dataclasses.replace(options, tasks=("vqa",))
    elif config.data is None or config.data_root is not None:
        return evaluate_sets(config, options, device, resources)
    if config.sets or config.suite or config.prompts or config.submit or config.beside:
        raise UserError("--sets, --suite, --submit, --prompts and --beside go with --data-root, not with --data")
    if config.probe_labels and not config.probe_train:
        raise UserError("--probe-labels goes with --probe-train")
    requirements = [parse_requirement(text) for text in config.require]
    check_names(requirements, METRICS, options.tasks)
    out = Path(config.out)
    if config.dry_run:
        return estimate_folder(config, questions, options, device, resources)
    results, collection, loaded = evaluate_checkpoint(
        config.checkpoint,
        config.data,
        config.labels,
        out,
        options,
        device,
        sys.argv,
        regions=config.regions,
        compositions=config.compositions,
        probe_train=config.probe_train,
        probe_labels=config.probe_labels,
        questions=questions,
        ema=config.ema,
        shard=config.shard_weights,
        board=config.tensorboard,
        resources=resources,
    )
    if results is None:  # rank 0 has them
        return 0
    if config.tensorboard:
        write_scalars(config.tensorboard, list(rows_of(results)), out)
    verdicts = judge(requirements, {task: record["metrics"] for task, record in results["tasks"].items()})
    results["requirements"] = [{"requirement": str(v.requirement), "value": v.value, "passed": v.passed} for v in verdicts]
    write_json(out / "results.json", results)
    report = Path(config.report) if config.report else out / "report.html"
    write_report(report, results, verdicts, collection, out, config.checkpoint, loaded.config.data.train)
    print_table(results, verdicts)
    print(f"numbers: {out / 'results.json'}\nreport:  {report}", flush=True)
    short = [v for v in verdicts if not v.passed]
    for verdict in short:
        print(verdict, file=sys.stderr, flush=True)
    return 1 if short else 0


def estimate_folder(config: EvaluateConfig, questions: Request | None, options, device, resources) -> int:
    """What an evaluation on a data set folder would take; nothing is evaluated. 0."""
    from sycoca_ds.eval.collection import Collection
    from sycoca_ds.eval.compositions.reading import read_compositions
    from sycoca_ds.eval.regions.patches import read_regions
    from sycoca_ds.eval.regions.segments import read_segments
    from sycoca_ds.eval.runner.bench import Inputs
    from sycoca_ds.eval.vqa.items import QuestionPictures
    from sycoca_ds.evaluation.estimate import dry_run_folder

    more = {"probe_train": config.probe_train, "probe_labels": config.probe_labels, "board": config.tensorboard}
    labels, loaded, probe = opened(
        config.checkpoint, config.labels, options, device, resources, ema=config.ema, shard=config.shard_weights, **more
    )
    with resources.team.together():
        size = loaded.config.model.image.image_size
        collection = QuestionPictures(questions, size) if config.data is None else Collection(config.data, size)
        if labels is not None and {"classification", "linear_probe"} & set(options.tasks):
            labels.of([picture.url for picture in collection.pictures])
        asked = questions.open(collection) if questions is not None and "vqa" in options.tasks else None
        benchmarks = read_compositions(config.compositions) if "compositionality" in options.tasks else ()
        regions = segments = None
        if config.regions is not None and {"masking", "alignment"} & set(options.tasks):
            model = loaded.config.model
            regions = read_regions(config.regions, collection, loaded.tokenizer, model.image.patch_size, model.text.context_length)
        if config.regions is not None and "alignment" in options.tasks:
            segments = read_segments(config.regions, collection)
        inputs = Inputs(options, labels, regions, benchmarks, probe, segments, asked)
    return dry_run_folder(loaded, collection, inputs, Path(config.out), device, resources)


def evaluate_sets(config: EvaluateConfig, options, device, resources) -> int:
    """Runs the tasks that each set is for; 0, or 1 if a set that is named, or there, has no numbers."""
    from sycoca_ds.eval.datasets.evaluation import Asked, evaluate_official
    from sycoca_ds.eval.report.numbers import check_step, rows_of, write_scalars
    from sycoca_ds.eval.report.terminal import print_table
    from sycoca_ds.eval.vqa.items import Request
    from sycoca_ds.evaluation.estimate import dry_run
    from sycoca_ds.evaluation.sharding import open_checkpoint

    if config.data is not None or config.data_root is None:
        raise UserError("expected --data FOLDER, or --data-root FOLDER with --sets or --suite; one of them")
    names = ("labels", "regions", "compositions", "questions", "require", "report", "probe_train", "probe_labels")
    alone = [name for name in names if getattr(config, name)]
    if alone:
        raise UserError(f"--{alone[0].replace('_', '-')} goes with --data, not with --data-root")
    with resources.team.together():
        request = Request("", config.answers, config.answer_count, config.answering, config.rank_first)
        asked = Asked.parse(config.data_root, config.sets, config.suite, config.prompts, config.submit, config.beside, request)
    loaded = open_checkpoint(config.checkpoint, device, resources.team, ema=config.ema, shard=config.shard_weights)
    with resources.team.together():
        check_step(config.tensorboard, loaded.state["step"])

    if config.dry_run:
        return dry_run(loaded, asked, Path(config.out), options, device, resources)

    def shown(results: dict) -> None:
        print_table(results, [])
        if config.tensorboard:
            name = results["data"]["set"]
            write_scalars(config.tensorboard, list(rows_of(results, name)), Path(config.out) / name)

    more = {"ema": config.ema, "resources": resources}
    return evaluate_official(loaded, config.checkpoint, asked, config.out, options, device, sys.argv, shown, **more)
