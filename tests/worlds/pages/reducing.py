"""A page's command at a size that a test can run. All that is changed stands here, by rule: where absolute folders lie, which
ports and hosts are this machine's, how large models, worlds and trainings are. Of a training the preset stays, and all but sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.worlds.pages.typed import SCRIPT, Typed, entry_of
from tests.worlds.trainings.training import SMALL

ROOTS = re.compile(r"(?<![\w./~-])/(data|shared|local|mirrors|catalogues)(?=/|$)")
"""Folders of a machine that a page takes for granted; they lie in the stage."""
BUCKET = re.compile(r"s3://bucket(?=/)")
"""A store behind a URL is the stage's /data, read by fsspec as well."""
PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")
CAPITALS = {
    "COMMAND": "plan",
    "RUN": "runs/930m",
    "RUN/watched": "runs/930m/watched",
    "DATA": "/data/cc12m",
    "FOLDER": "/data/heldout",
    "FILE": "open_clip_model.safetensors",
}
"""What words in capitals stand for, in a line of text."""
TRAINING = {**dict(zip(SMALL[2::2], SMALL[3::2], strict=True)), "--optim.epochs": "None", "--optim.steps": "4"}
EVERYWHERE = {
    "--nnodes": "1",
    "--nproc-per-node": "1",
    "--num_accelerators": "1",
    "--master-addr": "127.0.0.1",
    "--run.expected-world-size": "1",
    "--run.validation-samples": "16",
    "--vocab-size": "320",
    "--shard-size": "40",
    "--whole-pictures": "2",
    "--answering": "2",
    "--seeds": ["0"],
}
"""Values that take the place of a page's, where it gives any."""
WORLD = {"--train": "96", "--val": "24", "--test": "24"}
DEFAULT_PORTS = {"data scenes": "8731", "data folder": "8732", "explore": "8765"}
DOWNLOADS = ("data build", "data curate", "data download")
ON_THIS_MACHINE = ("folder", "wds")
"""Sources of `build` that download nothing."""
ROWS = {"5": ("table5.coca", "table5.sycoca"), "masking": ("masking.eq7", "masking.random")}
"""Rows of an ablation, of which each is a training and an evaluation."""
SMALL_COCA = "open_clip_config.json"
"""Says what open_clip's weights in the stage are, in place of the preset that they are of in a page."""
HOSTFILE = "hostfiles/here"
"""Of this machine alone, in the stage, where hosts would be started or asked; who only counts with it is given the page's own."""
COUNTING = ("plan", "launch print")


def option(words: Sequence[str], name: str) -> list[str]:
    """The values behind `--name` or `--name=`."""
    for place, word in enumerate(words):
        if word.startswith(f"{name}="):
            return [word.partition("=")[2]]
        if word == name:
            after = words[place + 1 :]
            return list(after[: next((n for n, value in enumerate(after) if value.startswith("--")), len(after))])
    return []


def with_options(words: Sequence[str], values: Mapping[str, str | Sequence[str]], *, only_given: bool = False) -> list[str]:
    """The words with other values behind their options: a string for one word, a list for all up to the next option. Options that
    were not given come at the end."""
    changed, found, left = [], set(), 0
    for word in words:
        name, mark, _ = word.partition("=")
        name = name if name in values else name.replace("_", "-")
        if word.startswith("--") and name in values:
            value = [values[name]] if isinstance(values[name], str) else list(values[name])
            changed += [f"{word.partition('=')[0]}={value[0]}"] if mark else [word, *value]
            found.add(name)
            left = 0 if mark else 1 if isinstance(values[name], str) else len(words)
        elif left and not word.startswith("--"):
            left -= 1
        else:
            left = 0
            changed.append(word)
    if not only_given:
        for name in [name for name in values if name not in found]:
            changed += [name, *([values[name]] if isinstance(values[name], str) else values[name])]
    return changed


def halves(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and what from it on."""
    place = list(words).index("--") if "--" in words else len(words)
    return list(words[:place]), list(words[place:])


def small(typed: Typed, stage: Path, port: Callable[[str], int], hosts: str) -> list[str]:
    """A command's words for the stage.

    Args:
        stage: the folder that stands for the repository.
        port: the free port that stands for one of a page.
        hosts: HOST:PORT of the server that has the catalogues' pictures.
    """
    words = list(typed.words)
    if typed.inline:
        name, rest = entry_of(tuple(words))
        if "--help" not in words and ((name is not None and all(map(str.isupper, rest))) or words[-1] == "COMMAND"):
            words = [*words[: len(words) - len(rest)], "--help"]  # the name of a command; a page says elsewhere how it is called
        words = [CAPITALS.get(word, word) for word in words]
    words = [PORT.sub(lambda found: str(port(found[0])), word) for word in words]
    words = [BUCKET.sub(f"file://{stage}/data", ROOTS.sub(lambda found: f"{stage}/{found[1]}", word)) for word in words]
    return shrunk(words, port, hosts)


def shrunk(words: list[str], port: Callable[[str], int], hosts: str) -> list[str]:
    name, rest = entry_of(tuple(words))
    head = words[: len(words) - len(rest)]
    if "--help" in words:
        return words
    if name == "supervise":
        own, command = halves(rest)
        return [*head, *own, "--", *shrunk(command[1:], port, hosts)]
    ports = {mark: str(port(value)) for mark in ("--port", "--master-port") for value in option(words, mark)[:1]}
    values = {**EVERYWHERE, **ports} | ({} if name in COUNTING else {"--hostfile": HOSTFILE})
    head, rest = with_options(head, values, only_given=True), with_options(rest, values, only_given=True)
    if name in DEFAULT_PORTS and "--port" not in rest:
        rest += ["--port", str(port(DEFAULT_PORTS[name]))]
    if words[0] == "curl":
        return [*words, "--fail"]  # an answer that refuses is a status, too
    if words[0] == "tensorboard":
        return [*words, "--port", str(port("6006"))]
    if words[0] == "sbatch":
        script = next(place for place, word in enumerate(words) if word.endswith(".sbatch"))
        return [*words, "--allow-host", hosts] if "jobs" in words[script] else with_options(words, TRAINING)
    if name == "data scenes":
        return [*head, *with_options(rest, WORLD)]
    if name in DOWNLOADS and option(rest, "--source") != [] and option(rest, "--source")[0] not in ON_THIS_MACHINE:
        given = option(rest, "--allow-host")
        return [*head, *with_options(rest, {"--allow-host": [*given, hosts]})]
    if name == "train":
        return [*head, *with_options(rest, TRAINING)]
    if name == "export":
        return [*head, *with_options(rest, {"--model": SMALL_COCA}, only_given=True)]
    if name == "ablations":
        own, training = halves(rest)
        rows = [row for table in option(own, "--table") for row in ROWS[table]]
        return [*head, *with_options(own, {"--rows": rows}), "--", *with_options(training[1:], TRAINING)]
    return [*head, *rest]


def outputs(words: Sequence[str]) -> list[str]:
    """Files and folders that a command has to leave."""
    name, rest = entry_of(tuple(words))
    if {"--help", "--dry-run"} & set(words) or name in ("doctor", "launch check", "launch print", None):
        return []
    if name in ("supervise", "ablations"):
        own, inner = halves(rest)
        return outputs(inner[1:]) if name == "supervise" else option(own, "--out")
    return [value for mark in ("--out", "--run.out", "--sheet") for value in option(rest, mark)]


def is_training(words: Sequence[str]) -> bool:
    return any(SCRIPT.fullmatch(word) and "train" in word for word in words) or tuple(words[:2]) == ("sycoca", "train")
