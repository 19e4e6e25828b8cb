"""The commands and the Python that stand in README.md, docs/ and their like, in the order of the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sycoca_ds.cli.table import COMMANDS, below
from sycoca_ds.cli.train import FLAGS, WITH_VALUE
from tests.worlds import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *(REPOSITORY / name for name in ("CONTRIBUTING.md", "hostfiles/README.md", "benchmarks/README.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PROGRAMS = ("sycoca", "python", "deepspeed", "torchrun", "tensorboard", "sbatch", "make", "pip")
SCRIPT = re.compile(r"(?:\.venv/bin/)?(?:sycoca_ds/(?:train|evaluate|export)\.py)")
LOOP = re.compile(r"for (\w+) in ([^;]+); do")


@dataclass(frozen=True)
class Python:
    """Python of a page: blocks that follow each other without a command in between are one."""

    page: str
    code: str


@dataclass(frozen=True)
class Typed:
    """A command as a page has it."""

    page: str
    words: tuple[str, ...]
    behind: tuple[str, ...] = ()
    """What a shell does with its output: `>` and a file."""
    inline: bool = False
    """Between backticks in a line of text, where words in capitals stand for others."""

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def divided(line: str) -> tuple[list[str], list[str]]:
    """(the words of a line of shell without comment and environment, its redirections); a `&` at its end is left out."""
    words = shlex.split(line, comments=True)
    ends = (place for place, word in enumerate(words) if word in ("&", "|", "||", "&&", ">", ">>") or word[:2] == "2>")
    end = next(ends, len(words))
    words, behind = words[:end], [word for word in words[end:] if word != "&"]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words, behind


def plain(line: str) -> list[str]:
    """The words of a line of shell, without its comment, redirections, environment and `&`."""
    return divided(line)[0]


def lines_of(body: str) -> Iterator[str]:
    """The lines that a shell would run, a loop's once for each of its values."""
    loop: tuple[str, list[str]] | None = None
    held: list[str] = []
    for line in body.replace("\\\n", " ").splitlines():
        started = LOOP.match(line.strip())
        if started:
            loop, held = (started[1], started[2].split()), []
        elif loop and plain(line) == ["done"]:
            yield from (inside.replace(f"${loop[0]}", value) for value in loop[1] for inside in held)
            loop = None
        elif loop:
            held.append(line)
        else:
            yield line
    assert loop is None, "a loop without its end"


def read(path: Path) -> list[Typed | Python]:
    """Lines of its blocks of shell, its blocks of Python, and what between single backticks begins with a program and goes on
    with an argument; in the order of the page."""
    text, name = path.read_text(), path.relative_to(REPOSITORY).as_posix()
    found: list[tuple[int, Typed | Python]] = []
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            found.append((block.start(), Python(name, block[2])))
        for line in lines_of(block[2]) if block[1] in ("sh", "bash", "console") else ():
            words, behind = divided(line)
            if words:
                found.append((block.start(), Typed(name, tuple(words), tuple(behind))))
    for code in INLINE.finditer(BLOCK.sub(lambda block: " " * len(block[0]), text)):
        words = plain(code[1].replace("\\|", "|")) if code[1].split()[:1] and code[1].split()[0] in PROGRAMS else []
        if len(words) > 1 and "..." not in words:
            found.append((code.start(), Typed(name, tuple(words), inline=True)))
    return [item for _, item in sorted(found, key=lambda item: item[0])]


def steps_of(path: Path) -> list[Typed | Python]:
    """What a reader of the page does, in order; what a line of text repeats is done once."""
    steps: list[Typed | Python] = []
    for item in dict.fromkeys(read(path)):
        if isinstance(item, Python) and steps and isinstance(steps[-1], Python):
            item = Python(item.page, f"{steps.pop().code}\n{item.code}")
        steps.append(item)
    return steps


TYPED = [item for page in PAGES if page.exists() for item in read(page) if isinstance(item, Typed)]


def entry_of(words: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """(the command of `sycoca` that these words are, its own words), or (None, []) for a program that is not ours."""
    if words[0] == "sycoca":
        name = next((" ".join(words[1 : 1 + n]) for n in (3, 2, 1) if " ".join(words[1 : 1 + n]) in COMMANDS), None)
        assert name is not None or words[1].startswith("-") or words[1].isupper() or below(words[1]), "no such command"
        return name, list(words[1 + len(name.split()) :]) if name else []
    script = next((place for place, word in enumerate(words) if SCRIPT.fullmatch(word)), None)
    if script is not None:
        name = {"train": "train", "evaluate": "eval", "export": "export"}[Path(words[script]).stem]
        rest = list(words[script + 1 :])
        if words[0] == "deepspeed":
            unknown = [word for word in words[1:script] if word.startswith("--") and word.split("=")[0] not in FLAGS | WITH_VALUE]
            assert not unknown, f"deepspeed has no {unknown}"
        return ("watch", rest) if rest[:1] == ["--watch"] else (name, rest)
    if words[:2] == ("python", "-m"):
        named = [
            (len(command.words), name)
            for name, command in COMMANDS.items()
            if command.program == f"python -m {words[2]}" and words[3 : 3 + len(command.words)] == command.words
        ]
        if named:
            count, name = max(named)
            return name, list(words[3 + count :])
        place = REPOSITORY / words[2].replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").exists() or not words[2].startswith(("sycoca_ds", "data_pipeline"))
    return None, []
