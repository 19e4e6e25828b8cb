"""The command line of an evaluation, and what of it has to be looked up on the machine."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from data_pipeline.errors import UserError
from sycoca_ds.eval.options import SuiteOptions


@dataclass(frozen=True)
class Subject:
    """What is evaluated, on what."""

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
    probe_train: str | None = None
    """Data set folder to train a linear probe on, which is tested on --data; the paper's sets have their own training splits."""
    probe_labels: str | None = None
    """JSON with the classes of the pictures in --probe-train; default --labels, if that has theirs, too."""
    submit: tuple[str, ...] = ()
    """Sets in --data-root for whose server captions or answers are written, which are kept back there: nocaps, coco_captions,
    vqa_v2."""


@dataclass(frozen=True)
class EvaluateConfig(SuiteOptions, Subject):
    """Downstream evaluation of one checkpoint on one data set folder, or on the paper's sets as they are published."""

    precision: str = field(default="auto", kw_only=True)
    """fp32, bf16 (autocast), or auto: bf16 on a GPU that has it, fp32 elsewhere. Scores are always computed in full precision."""
    require: tuple[str, ...] = ()
    """Bounds such as retrieval.i2t_r1>=40 (quote them for the shell): printed, shown in the report, status 1 if one is
    short."""
    report: str | None = None
    """Where the page goes; default OUT/report.html."""
    device: str = "auto"
    """auto (cuda if there is one), cpu, cuda, cuda:1."""
    ema: bool = False
    """Evaluate the moving average of the weights, which a run with --optim.ema-decay has saved, instead of the weights."""
    dry_run: bool = False
    """Measures a batch of each kind on this device, and tells how long the tasks would take on --data, or on the sets in
    --data-root, those that are not there as their pages count them. Evaluates nothing; OUT/estimate.json. With --watch: which
    checkpoints would be evaluated."""
    shard_weights: str = "auto"
    """Whether the ranks of a launch share the weights, each with a part of every one, instead of holding all of them: yes, no, or
    auto: where a rank has no room for all. Changes memory and speed, no number."""
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

    def suite_options(self, device) -> SuiteOptions:
        """Its part that the tasks are given, `auto` decided for a `torch.device`."""
        values = {item.name: getattr(self, item.name) for item in fields(SuiteOptions)}
        return SuiteOptions(**{**values, "precision": choose_precision(self.precision, device)})


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
