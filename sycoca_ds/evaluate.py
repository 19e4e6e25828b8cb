"""Evaluates a saved checkpoint: retrieval, classification, captioning, reconstruction, masks, compositions, linear probes. Leaves
JSON, samples and a page.

    python sycoca_ds/evaluate.py --checkpoint runs/demo --data runs/demo/data/test \\
        --labels runs/demo/world/test_labels.json --out runs/demo/eval
    python sycoca_ds/evaluate.py --checkpoint runs/base --data-root /data --sets flickr30k imagenet1k --out runs/base/eval

`--require 'retrieval.i2t_r1>=40' 'captioning.cider>=1'` ends with status 1, and the numbers, if one falls short.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0] or os.getcwd()).resolve() == ROOT / "sycoca_ds":
    # launched by path: this folder would shadow installed modules (`data`, `model`), and `sycoca_ds` would not be found
    sys.path[0] = str(ROOT)

from data_pipeline.errors import UserError, in_the_environment, one_line, run_command  # noqa: E402


@dataclass(frozen=True)
class EvaluateConfig:
    """Downstream evaluation of one checkpoint on one data set folder, or on the paper's sets as they are published."""

    checkpoint: str | None = None
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
    """Which of the sets in --data-root to evaluate on: those of the paper, wds:NAME (WebDatasets of CLIP_benchmark and DataComp),
    parquet:NAME (folders of Hugging Face)."""
    suite: str | None = None
    """paper: all sets of the paper; datacomp: DataComp's 38, with their average. Those that are not in --data-root become null with
    the reason."""
    beside: tuple[str, ...] = ()
    """With --suite datacomp: numbers of other models to stand beside, FILE or FILE,ROW, such as open_clip's openclip_results.csv
    (docs/evaluation.md)."""
    prompts: str | None = None
    """JSON with class names and templates of sets, in place of those that are in their files, or known (docs/evaluation.md)."""
    labels: str | None = None
    """JSON with classes, templates and the class of each url; without it classification is left out, with the
    reason."""
    regions: str | None = None
    """File or folder that says where in the pictures the objects are: a drawn world's regions, Flickr30K Entities, COCO's
    instances, PASCAL VOC (docs/masking.md). With it masking also tells whether scores find what the caption names, and alignment
    whether patches and words fit each other."""
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
        "alignment",
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
    """Masking scores that the tasks masking and alignment try beside the checkpoint's own: values of model.masking.similarity, with
    `:all` or `:content` behind for another value of model.masking.words than the checkpoint's."""
    background: str = "background"
    """What makes a pixel background in the task alignment: words with commas between, the best of which competes with the names of
    the classes, or a probability (0 to 1) that the likeliest class has to reach."""
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
    watch: str | None = None
    """In place of --checkpoint: run folder whose checkpoints are evaluated one after another, those that are there and each new
    one, until the run is completed. OUT/step_NNNNNNNN/ has each, OUT/curve.csv, curve.png and tensorboard/ all of them."""
    watch_seconds: float = 30.0
    """How often --watch looks for a new checkpoint."""
    tensorboard: str | None = None
    """Folder for TensorBoard's scalars: a point for each number at the checkpoint's step."""
    cache: str | None = None
    """Folder for features, captions and likelihoods, by weights, data, transform and precision: the same question is not computed
    twice, and a killed evaluation goes on from it. Default OUT/cache; `off` keeps nothing."""
    cache_gb: float = 20.0
    """Most that folder holds, GB: what was not used for longest goes first."""


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
        resources: `Resources`; default one rank, nothing kept but finished tasks.

    Raises:
        UserError: no or damaged checkpoint, no average in it, no or damaged data, bad labels, benchmarks that are not there.
    """
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.eval.labels import load_labels
    from sycoca_ds.eval.probe.data import own_probe_data
    from sycoca_ds.eval.suite import evaluate_model

    with contextlib.nullcontext() if resources is None else resources.team.together():
        label_set = load_labels(labels) if labels else None
        loaded = load_for_inference(checkpoint, device, ema=ema)
        probe = None
        if probe_train is not None and "linear_probe" in options.tasks:
            probe = own_probe_data(probe_train, probe_labels, label_set, loaded.config.model.image.image_size)
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


def evaluate(config: EvaluateConfig) -> int:
    """Runs everything; 0, or 1 if a requirement is not met or a set has no numbers that was asked for."""
    from sycoca_ds.devices import choose_precision
    from sycoca_ds.eval.bench import Resources, SuiteOptions
    from sycoca_ds.eval.cache import Cache
    from sycoca_ds.eval.suite import check_options

    team, device = join_ranks(config.device)
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
        config.background,
    )
    check_options(options)
    if config.cache_gb <= 0:
        raise UserError(f"--cache-gb {config.cache_gb:g}: expected more than 0; --cache off keeps nothing")
    folder = None if config.cache == "off" else Path(config.cache or Path(config.out) / "cache")
    resources = Resources(team, Cache(folder, int(config.cache_gb * 1e9)))
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
    from data_pipeline.shards.manifest import Manifest, ManifestError
    from sycoca_ds.watch import Watch

    alone = [name for name in ("require", "report") if getattr(config, name)]
    if alone:
        raise UserError(f"--{alone[0]} goes with --checkpoint, not with --watch")
    board = config.tensorboard or str(Path(config.out) / "tensorboard")

    def evaluate_step(folder: Path, out: Path) -> int:
        one = dataclasses.replace(config, checkpoint=str(folder), watch=None, out=str(out), tensorboard=board)
        return evaluate_one(one, options, device, resources)

    asked = {**dataclasses.asdict(config), "precision": options.precision}
    if config.data is not None and resources.team.leads:
        with contextlib.suppress(ManifestError):  # told by who opens it
            asked["data_digest"] = Manifest.load(config.data).digest
    return Watch(Path(config.watch), Path(config.out), asked, resources, evaluate_step).run(config.watch_seconds)


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


def evaluate_sets(config: EvaluateConfig, options, device, resources) -> int:
    """Runs the tasks that each set is for; 0, or 1 if a set that is named, or there, has no numbers."""
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.eval.datasets.evaluation import Asked, evaluate_official
    from sycoca_ds.eval.report.numbers import rows_of, write_scalars
    from sycoca_ds.eval.report.terminal import print_table

    if config.data is not None or config.data_root is None:
        raise UserError("expected --data FOLDER, or --data-root FOLDER with --sets or --suite; one of them")
    names = ("labels", "regions", "questions", "require", "report", "probe_train", "probe_labels")
    alone = [name for name in names if getattr(config, name)]
    if alone:
        raise UserError(f"--{alone[0].replace('_', '-')} goes with --data, not with --data-root")
    with resources.team.together():
        asked = Asked.parse(config.data_root, config.sets, config.suite, config.prompts, config.submit, config.beside)
        loaded = load_for_inference(config.checkpoint, device, ema=config.ema)

    def shown(results: dict) -> None:
        print_table(results, [])
        if config.tensorboard:
            name = results["data"]["set"]
            write_scalars(config.tensorboard, list(rows_of(results, name)), Path(config.out) / name)

    more = {"ema": config.ema, "resources": resources}
    return evaluate_official(loaded, config.checkpoint, asked, config.out, options, device, sys.argv, shown, **more)


def join_ranks(device: str):
    """(`Team`, `torch.device`) of this process: alone, or one of those that a launcher has started."""
    from sycoca_ds.devices import choose_device
    from sycoca_ds.eval.team import Team

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(), choose_device(device)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: every rank takes a device of its own here; expected auto, cpu or cuda")
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    from sycoca_ds.engine.ranks.environment import prepare_deepspeed
    from sycoca_ds.engine.ranks.runtime import start_runtime

    prepare_deepspeed()
    as_alone = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    runtime = start_runtime()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = as_alone  # training may be coarser
    if device == "cuda" and runtime.device.type != "cuda":
        raise UserError(f"--device cuda: torch {torch.__version__} finds none on this machine; use --device auto")
    if not runtime.leads:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # it holds nothing, and a wait for rank 0 hears no Ctrl-C
    return Team(runtime.rank, runtime.world_size), runtime.device


FIRST_WORD_SECONDS = 15.0
"""For which other ranks leave rank 0 the time to say what is wrong; a launcher ends them as soon as it has."""


def main() -> int:
    from data_pipeline.command_line import parse_command

    program, words = "sycoca_ds/evaluate.py", [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run_command(lambda: evaluate(parse_command(EvaluateConfig, words, program, description=__doc__)))
    from sycoca_ds.engine.ranks.output import never_fatal
    from sycoca_ds.train import end_process

    never_fatal()
    rank = int(os.environ["RANK"])
    if rank > 0:
        sys.stdout = open(os.devnull, "w")

    def on_every_rank() -> int:
        try:
            status = in_the_environment(lambda: evaluate(parse_command(EvaluateConfig, words, program, description=__doc__)))
        except UserError:  # all ranks find the same one, or rank 0 was told
            if rank == 0:
                raise
            time.sleep(FIRST_WORD_SECONDS)
            return 2
        except Exception as error:
            if rank == 0:
                traceback.print_exc()
            else:  # it may be this rank's alone; rank 0's traceback says more where it is not
                print(f"rank {rank}: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
            return 1
        leave()
        return status

    end_process(run_command(on_every_rank))


def leave() -> None:
    """Ends the process group, if one was made, when every rank is here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
