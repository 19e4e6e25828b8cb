"""Evaluates a saved checkpoint: retrieval, classification, captioning, reconstruction, masks, compositions, linear probes. Leaves
JSON, samples and a page.

    python sycoca_ds/evaluate.py --checkpoint runs/demo --data runs/demo/data/test \\
        --labels runs/demo/world/test_labels.json --out runs/demo/eval
    python sycoca_ds/evaluate.py --checkpoint runs/base --data-root /data --sets flickr30k imagenet1k --out runs/base/eval

`--require 'retrieval.i2t_r1>=40' 'captioning.cider>=1'` ends with status 1, and the numbers, if one falls short.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0] or os.getcwd()).resolve() == ROOT / "sycoca_ds":
    # launched by path: this folder would shadow installed modules (`data`, `model`), and `sycoca_ds` would not be found
    sys.path[0] = str(ROOT)

from data_pipeline.errors import UserError, run_command  # noqa: E402


@dataclass(frozen=True)
class EvaluateConfig:
    """Downstream evaluation of one checkpoint on one data set folder, or on the paper's sets as they are published."""

    checkpoint: str
    """Run folder, checkpoints folder or one step folder."""
    data: str | None = None
    """Data set folder with held-out samples (canonical/, shards/, manifest/)."""
    out: str = field(kw_only=True)
    """Folder for results.json, samples/ and report.html; with --sets or --suite for one such folder a set, and sets.json. Finished
    tasks found there are reused if nothing they depend on changed."""
    data_root: str | None = None
    """In place of --data: folder with a folder a set, as they are published (docs/evaluation.md;
    `python -m sycoca_ds.eval datasets` shows what is there)."""
    sets: tuple[str, ...] = ()
    """Which of the sets in --data-root to evaluate on."""
    suite: str | None = None
    """paper: all sets of the paper; those that are not in --data-root become null with the reason."""
    prompts: str | None = None
    """JSON with class names and templates of sets, in place of those that are in their files, or known (docs/evaluation.md)."""
    labels: str | None = None
    """JSON with classes, templates and the class of each url; without it classification is left out, with the
    reason."""
    regions: str | None = None
    """File or folder that says where in the pictures the objects are: a drawn world's regions, Flickr30K Entities, COCO's
    instances, PASCAL VOC (docs/masking.md). With it masking also tells whether scores find what the caption names."""
    compositions: tuple[str, ...] = ()
    """Benchmarks of captions that nearly fit, NAME=FOLDER or NAME=FOLDER,PICTURES: sugarcrepe, winoground, aro, as they are
    published (docs/evaluation.md)."""
    questions: str | None = None
    """Questions for the task vqa, FILE[,ANNOTATIONS][,PICTURES]: SPLIT_questions.json of a drawn world on the pictures of --data;
    or VQA v2's two files, on the pictures of --data or, in its place, in the folder PICTURES (docs/evaluation.md)."""
    answers: tuple[str, ...] = ()
    """The answers to choose from: a file with a list, or VQA v2's annotations, whose frequent answers are taken; default: those of
    the questions' own file."""
    answer_count: int = 9
    """Questions that an answer has to be the most frequent one of, to be taken from annotations (9 over train and val: the 3,128 of
    ALBEF, BLIP and SyCoCa)."""
    answering: str = "rank"
    """rank: the likeliest candidate; generate: token by token along the candidates, greedily or with --beams."""
    rank_first: int = 128
    """Candidates that are ranked to their end, those with the likeliest first token (ALBEF, BLIP: 128)."""
    tasks: tuple[str, ...] = (
        "retrieval",
        "classification",
        "captioning",
        "reconstruction",
        "masking",
        "compositionality",
        "linear_probe",
        "vqa",
    )
    """Which tasks to run."""
    probe_train: str | None = None
    """Data set folder to train a linear probe on, which is tested on --data; the paper's sets have their own training splits."""
    probe_labels: str | None = None
    """JSON with the classes of the pictures in --probe-train; default --labels, if that has theirs, too."""
    probe_features: str = "output"
    """What a linear probe stands on: output (the image encoder's, before the projection, as CLIP does) or embedding (behind it,
    of length 1)."""
    submit: tuple[str, ...] = ()
    """Sets in --data-root for whose server captions are written, of pictures whose own are kept back: nocaps, coco_captions."""
    similarity: tuple[str, ...] = ()
    """Masking scores that the task masking tries beside the checkpoint's own: values of model.masking.similarity, with
    `:all` or `:content` behind for another value of model.masking.words than the checkpoint's."""
    require: tuple[str, ...] = ()
    """Bounds such as retrieval.i2t_r1>=40 (quote them for the shell): printed, shown in the report, status 1 if one is
    short."""
    report: str | None = None
    """Where the page goes; default OUT/report.html."""
    batch_size: int = 64
    """Images at once. Changes speed and memory; numbers only by float rounding."""
    device: str = "auto"
    """auto (cuda if there is one), cpu, cuda, cuda:1."""
    precision: str = "auto"
    """fp32, bf16 (autocast), or auto: bf16 on a GPU that has it, fp32 elsewhere. Scores are always computed in full
    precision."""
    caption_tokens: int = 30
    """Longest generated caption in tokens (open_clip's generate: 30)."""
    beams: int = 1
    """Beams of the captions' beam search, ranked by the mean log-probability of a token; 1 = greedy (open_clip's generate: 6
    beams)."""
    seed: int = 0
    """Seed of random masks and of bootstrap intervals."""
    gallery: int = 6
    """Rows of pictures in the report's reconstruction and retrieval sections."""
    ema: bool = False
    """Evaluate the moving average of the weights, which a run with --optim.ema-decay has saved, instead of the weights."""


def choose_device(name: str):
    """`torch.device`. UserError for a device that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N ({str(error).splitlines()[0]})") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"--device {name}: this machine offers {torch.cuda.device_count()} CUDA devices to torch "
            f"{torch.__version__}; use --device auto"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def choose_precision(name: str, device) -> str:
    """fp32 or bf16."""
    import torch

    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in ("fp32", "bf16"):
        raise UserError(f"--precision {name}: expected auto, fp32 or bf16")
    return name


def print_table(results: dict, verdicts: list) -> None:
    """Headline numbers on the terminal: value, chance, requirement."""
    from rich.console import Console
    from rich.table import Table

    from sycoca_ds.eval.registry import TASKS
    from sycoca_ds.eval.report.wording import reasons_told, show, told_first

    averaged = "" if results["checkpoint"]["ema_decay"] is None else ", average of its weights"
    required = {(v.requirement.task, v.requirement.metric): v for v in verdicts}
    table = Table(
        title=f"Checkpoint at step {results['checkpoint']['step']}{averaged}, {results['data']['images']:,} images",
        title_justify="left",
    )
    columns = [("task", "left"), ("number", "left"), ("value", "right"), ("chance", "right"), ("required", "left")]
    for name, side in columns if required else columns[:-1]:
        table.add_column(name, justify=side)
    for name, record in results["tasks"].items():
        task = TASKS[name]
        first = told_first(task, record)
        asked = [metric for owner, metric in required if owner == name and metric not in first]
        for position, metric in enumerate([*first, *asked]):
            wording, value = task.numbers[metric], record["metrics"][metric]
            verdict = required.get((name, metric))
            mark = (
                ""
                if verdict is None
                else f"{verdict.requirement.comparison} {verdict.requirement.bound:g} "
                + ("[green]pass[/]" if verdict.passed else "[bold red]SHORT[/]")
            )
            table.add_row(
                task.title if position == 0 else "",
                wording.label,
                show(value, wording.unit),
                show(record["chance"].get(metric), wording.unit) if metric in record["chance"] else "",
                *([mark] if required else []),
            )
        table.add_section()
    console = Console()
    console.print(table if table.row_count else table.title)
    masking = results["tasks"].get("masking", {}).get("details", {})
    if "told" in masking:
        console.print(f"masks: {masking['told']}", highlight=False, markup=False)
    similarities = masking.get("similarities", {})
    if len(similarities) > 1:
        Console(width=max(console.width, 120)).print(similarity_table(similarities))
    for similarity, reason in masking.get("similarities_left_out", {}).items():
        console.print(f"{similarity}: not measured, {reason}", highlight=False, markup=False)
    compositions = results["tasks"].get("compositionality", {})
    if compositions.get("status") == "done":
        Console(width=max(console.width, 120)).print(compositions_table(results))
        for line in compositions["details"]["told"]:
            console.print(line, highlight=False, markup=False)
    lines = (results["tasks"].get(name, {}).get("details", {}).get("told", ()) for name in ("linear_probe", "vqa"))
    for line in itertools.chain(*lines):
        console.print(line, highlight=False, markup=False)
    for name, record in results["tasks"].items():
        for reason, told in reasons_told(TASKS[name], record).items():
            console.print(f"{told}: not measured, {reason}", highlight=False, markup=False)


COMPARED = {
    "ignored": "caption_ignored",
    "higher": "own_caption_higher",
    "named": "named_over_unnamed",
    "other's": "other_named_over_unnamed",
    "no text": "no_text_named_over_unnamed",
    "untrained": "untrained_named_over_unnamed",
    "objects": "objects_over_background",
    "pointing": "pointing",
    "IoU": "word_iou",
}
"""Heads of the table of masking scores, and their numbers."""


def similarity_table(similarities: dict[str, dict[str, float]]):
    """A row a masking score: its numbers beside those of the controls."""
    from rich.table import Table

    from sycoca_ds.eval.report.wording import show

    heads = {head: name for head, name in COMPARED.items() if any(name in numbers for numbers in similarities.values())}
    told = "named: over unnamed objects, then the same under another picture's caption, no text, of untrained weights"
    table = Table(title="Masking scores", title_justify="left", caption=told if "named" in heads else None, caption_justify="left")
    table.add_column("score", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for similarity, numbers in similarities.items():
        table.add_row(similarity, *(show(numbers.get(name)) for name in heads.values()))
    return table


def compositions_table(results: dict):
    """A row a subset of a benchmark, a column a score."""
    from rich.table import Table

    from sycoca_ds.eval.compositions.wording import HOWS
    from sycoca_ds.eval.report.galleries import composition_rows

    table = Table(title="Compositions, % right", title_justify="left")
    table.add_column("benchmark", no_wrap=True)
    for head in (*HOWS, "chance"):
        table.add_column(head, justify="right", no_wrap=True)
    for label, values, chance in composition_rows(results):
        table.add_row(label, *values, chance)
    return table


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
) -> tuple[dict, Any, Any]:
    """Opens a checkpoint and runs the suite on it: results.json's content, the collection, the opened checkpoint.

    Args:
        options: `SuiteOptions`.
        device: `torch.device`.
        compositions: NAME=FOLDER[,PICTURES] of benchmarks.
        probe_train, probe_labels: folder and labels to train a linear probe on.
        questions: `sycoca_ds.eval.vqa.items.Request`.
        ema: of the moving average of the checkpoint's weights.

    Raises:
        UserError: no or damaged checkpoint, no average in it, no or damaged data, bad labels, benchmarks that are not there.
    """
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.eval.labels import load_labels
    from sycoca_ds.eval.probe.data import own_probe_data
    from sycoca_ds.eval.suite import evaluate_model

    label_set = load_labels(labels) if labels else None
    loaded = load_for_inference(checkpoint, device, ema=ema)
    probe = None
    if probe_train is not None and "linear_probe" in options.tasks:
        probe = own_probe_data(probe_train, probe_labels, label_set, loaded.config.model.image.image_size)
    results, collection = evaluate_model(
        loaded,
        checkpoint,
        data,
        label_set,
        out,
        options,
        device,
        command,
        regions=regions,
        compositions=compositions,
        probe=probe,
        questions=questions,
        ema=ema,
    )
    return results, collection, loaded


def evaluate(config: EvaluateConfig) -> int:
    """Runs everything; 0, or 1 if a requirement is not met or a set has no numbers that was asked for."""
    from data_pipeline.files import write_json
    from sycoca_ds.eval.bench import SuiteOptions
    from sycoca_ds.eval.registry import METRICS
    from sycoca_ds.eval.report.page import write_report
    from sycoca_ds.eval.requirements import check_names, judge, parse_requirement
    from sycoca_ds.eval.suite import check_options
    from sycoca_ds.eval.vqa.items import Request

    device = choose_device(config.device)
    options = SuiteOptions(
        config.tasks,
        config.batch_size,
        choose_precision(config.precision, device),
        config.caption_tokens,
        config.seed,
        config.gallery,
        config.beams,
        config.similarity,
        config.probe_features,
    )
    check_options(options)
    questions = None
    if config.questions is not None:
        questions = Request(config.questions, config.answers, config.answer_count, config.answering, config.rank_first)
    if questions is not None and questions.pictures is not None:
        if config.data is not None or config.data_root is not None:
            raise UserError(f"--questions {config.questions}: with a folder of pictures neither --data nor --data-root is taken")
        options = replace(options, tasks=("vqa",))
    elif config.data is None or config.data_root is not None:
        return evaluate_sets(config, options, device)
    if config.sets or config.suite or config.prompts or config.submit:
        raise UserError("--sets, --suite, --submit and --prompts go with --data-root, not with --data")
    if config.probe_labels and not config.probe_train:
        raise UserError("--probe-labels goes with --probe-train")
    requirements = [parse_requirement(text) for text in config.require]
    check_names(requirements, METRICS, options.tasks)
    out = Path(config.out)
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
    )
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


def evaluate_sets(config: EvaluateConfig, options, device) -> int:
    """Runs the tasks that each set is for; 0, or 1 if a set that is named, or there, has no numbers."""
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.eval.datasets.evaluation import Asked, evaluate_official

    if config.data is not None or config.data_root is None:
        raise UserError("expected --data FOLDER, or --data-root FOLDER with --sets or --suite; one of them")
    names = ("labels", "regions", "questions", "require", "report", "probe_train", "probe_labels")
    alone = [name for name in names if getattr(config, name)]
    if alone:
        raise UserError(f"--{alone[0].replace('_', '-')} goes with --data, not with --data-root")
    asked = Asked.parse(config.data_root, config.sets, config.suite, config.prompts, config.submit)
    loaded = load_for_inference(config.checkpoint, device, ema=config.ema)

    def shown(results: dict) -> None:
        print_table(results, [])

    return evaluate_official(loaded, config.checkpoint, asked, config.out, options, device, sys.argv, shown, ema=config.ema)


def main() -> int:
    from data_pipeline.command_line import parse_command

    program = "sycoca_ds/evaluate.py"
    return run_command(lambda: evaluate(parse_command(EvaluateConfig, sys.argv[1:], program, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
