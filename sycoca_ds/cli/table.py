"""Every command of `sycoca`, a line each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_pipeline.__main__ import COMMANDS as DATA_COMMANDS
from data_pipeline.__main__ import KEPT as DATA_KEPT
from data_pipeline.__main__ import PROGRAM as DATA_PROGRAM
from sycoca_ds.ablations import KEPT as ABLATIONS_KEPT
from sycoca_ds.data.__main__ import COMMANDS as INSPECT
from sycoca_ds.data.__main__ import PROGRAM as INSPECT_PROGRAM
from sycoca_ds.demo import KEPT as DEMO_KEPT
from sycoca_ds.eval.__main__ import COMMANDS as EVAL_COMMANDS
from sycoca_ds.eval.__main__ import PROGRAM as EVAL_PROGRAM
from sycoca_ds.evaluation import KEPT as EVALUATION_KEPT
from sycoca_ds.exporting import KEPT as EXPORT_KEPT
from sycoca_ds.inference.__main__ import COMMANDS as INFERENCE_COMMANDS
from sycoca_ds.inference.__main__ import KEPT as INFERENCE_KEPT
from sycoca_ds.inference.__main__ import PROGRAM as INFERENCE_PROGRAM
from sycoca_ds.launch.command import COMMANDS as LAUNCH_COMMANDS
from sycoca_ds.launch.command import PROGRAM as LAUNCH_PROGRAM


@dataclass(frozen=True)
class Command:
    """One command."""

    target: str
    """MODULE:FUNCTION. The function takes its words from sys.argv and returns an exit status."""
    says: str
    """One line of help."""
    example: str
    """Words behind `sycoca NAME`, shown below its --help."""
    program: str
    """How it is called without `sycoca`; its help and errors name it by that, and are given `sycoca NAME` in its place."""
    words: tuple[str, ...] = ()
    """Words that the function finds before the user's."""
    kept: str = ""
    """What Ctrl-C leaves of it; empty: it makes nothing, or says so itself."""
    of_a_run: bool = False
    """Whether it takes the options of train.py, too, which its --help does not repeat."""


DATA_EXAMPLES = {
    "scenes": "--world hard --out runs/hard/world --no-serve",
    "folder": "--images photographs --captions captions.csv --out photographs/world --holdout val=0.1 test=0.1",
    "curate": "--source cc12m --metadata cc12m.tsv --out /data/cc12m",
    "download": "--data /data/cc12m --image-size 288",
    "split": "--data /data/laion",
    "merge": "--data /data/laion",
    "adopt": "--tars 'mirror/*.tar' --out /data/cc12m",
    "verify": "--data /data/cc12m --recheck",
    "mark": "/data/cc12m /data/coyo --evaluation /data/flickr30k",
    "tokenizer train": "--data /data/cc12m --out /data/cc12m/tokenizer.json",
    "tokenizer import-clip": "--merges bpe_simple_vocab_16e6.txt.gz --out clip.json",
    "report": "/data/cc12m",
    "build": "--source cc12m --metadata cc12m.tsv --out /data/cc12m --image-size 288",
}


def data(name: str) -> Command:
    """A command of data_pipeline."""
    return Command(
        "data_pipeline.__main__:main",
        DATA_COMMANDS[name][2],
        DATA_EXAMPLES[name],
        DATA_PROGRAM,
        tuple(name.split()),
        DATA_KEPT.get(name, ""),
    )


def evaluation(name: str, example: str) -> Command:
    """A command of sycoca_ds.eval."""
    return Command("sycoca_ds.eval.__main__:main", EVAL_COMMANDS[name][2], example, EVAL_PROGRAM, (name,))


def inference(name: str, example: str) -> Command:
    """A command of sycoca_ds.inference."""
    says, kept = INFERENCE_COMMANDS[name][2], INFERENCE_KEPT.get(name, "")
    return Command("sycoca_ds.inference.__main__:main", says, example, INFERENCE_PROGRAM, (name,), kept)


def launch(name: str, example: str) -> Command:
    """A command of sycoca_ds.launch."""
    return Command("sycoca_ds.launch.command:main", LAUNCH_COMMANDS[name][2], example, LAUNCH_PROGRAM, (name,))


def module(name: str, says: str, example: str, kept: str = "") -> Command:
    """A module with a `main` and, beside it, a `python -m sycoca_ds.ROOM`."""
    return Command(f"sycoca_ds.{name}:main", says, example, f"python -m sycoca_ds.{name.rsplit('.', 1)[0]}", kept=kept)


TABLE: dict[str, dict[str, Command]] = {
    "begin": {
        "demo": module(
            "demo.command", "the whole way, small: URLs in, a trained and evaluated model out", "--out runs/demo", DEMO_KEPT
        ),
        "doctor": Command(
            "sycoca_ds.doctor.command:main", "what this machine has and lacks, and what to do", "--for train", "sycoca doctor"
        ),
    },
    "data": {
        **{f"data {name}": data(name) for name in DATA_COMMANDS},
        "data inspect": Command(
            "sycoca_ds.data.__main__:main",
            INSPECT["inspect"],
            "/data/cc12m --out batch.png",
            INSPECT_PROGRAM,
            ("inspect",),
        ),
    },
    "train": {
        "plan": replace(
            module(
                "capacity.command",
                "what a run needs and costs, and how it is fastest, by arithmetic",
                "--hostfile hostfiles/a100x16 --gpu a100-80g --samples 1.5e8",
            ),
            of_a_run=True,
        ),
        "model": module("model.command", "what a model weighs: parameters, tokens and FLOPs", "930m"),
        "train": Command(
            "sycoca_ds.cli.train:main",
            "train or fine-tune, by DeepSpeed's launcher, here or on the hosts of a file",
            "--hostfile hostfiles/a100x16 --preset 930m --data.train /data/cc12m",
            "sycoca_ds/train.py",
        ),
        "launch check": launch("check", "--hostfile hostfiles/a100x16 --data /data/cc12m"),
        "launch print": launch("print", "--hostfile hostfiles/a100x16 -- --data.train /data/cc12m"),
        "launch files": launch("files", "--out templates"),
        "supervise": module(
            "supervise.command",
            "keep a training going: restarts, verdicts, where the time went",
            "-- sycoca train --hostfile hostfiles/a100x16 --data.train /data/cc12m",
        ),
        "ablations": module(
            "ablations.__main__",
            "the paper's Tables 5 to 7",
            "--table 5 --seeds 0 1 2 --evaluate flickr30k=/data/flickr30k -- --preset base --data.train /data/cc3m",
            ABLATIONS_KEPT,
        ),
    },
    "results": {
        "eval": Command(
            "sycoca_ds.evaluate:main",
            "numbers, pictures and a page from a checkpoint",
            "--checkpoint runs/930m --data /data/heldout --out runs/930m/eval",
            "sycoca_ds/evaluate.py",
            kept=EVALUATION_KEPT,
        ),
        "eval datasets": evaluation("datasets", "--data-root /data/sets"),
        "eval compare": evaluation("compare", "runs/a/eval runs/b/eval"),
        "eval labels": evaluation("labels", "--data /data/heldout --out labels.json"),
        "eval paper": evaluation("paper", "--out runs/930m/paper"),
        "watch": Command(
            "sycoca_ds.evaluate:main",
            "evaluate every checkpoint of a run as it appears",
            "runs/930m --data /data/heldout --out runs/930m/watched",
            "sycoca_ds/evaluate.py",
            ("--watch",),
            EVALUATION_KEPT,
        ),
        "export": Command(
            "sycoca_ds.export:main",
            "weights out of a run, and open_clip's in",
            "runs/coca_base --to open_clip --out weights/for_open_clip",
            "sycoca_ds/export.py",
            kept=EXPORT_KEPT,
        ),
        "runs": module("runs.command", "which runs there are, how they stand, what they reached", "runs --sort loss"),
    },
    "use": {
        "caption": inference("caption", "photo.jpg holiday --checkpoint runs/base --beams 6"),
        "search": inference("search", "photos 'a red bicycle' --checkpoint runs/base --sheet found.png"),
        "explore": module("explore.command", "a page that looks inside a model: patches and words, masks, neighbours", "runs/base"),
    },
    "shell": {
        "completion": Command(
            "sycoca_ds.cli.completion:main", "a script with which bash, zsh or fish completes all this", "bash", "sycoca completion"
        ),
    },
}
COMMANDS: dict[str, Command] = {name: command for part in TABLE.values() for name, command in part.items()}
MOST_WORDS = max(len(name.split()) for name in COMMANDS)


def below(name: str) -> dict[str, Command]:
    """The commands whose name begins with the words `name`, without it."""
    return {other[len(name) + 1 :]: command for other, command in COMMANDS.items() if other.startswith(f"{name} ")}
