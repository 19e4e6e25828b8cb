"""Pages are true: every command in them is one that the programs take, every link leads somewhere."""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.cli.completion import options_of
from sycoca_ds.cli.table import COMMANDS, below
from sycoca_ds.cli.train import FLAGS, WITH_VALUE, divide
from sycoca_ds.options import parse_options
from tests.worlds import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *(REPOSITORY / name for name in ("CONTRIBUTING.md", "hostfiles/README.md", "benchmarks/README.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PROGRAMS = ("sycoca", "python", "deepspeed", "torchrun", "sbatch", "make", "pip")
SCRIPT = re.compile(r"(?:\.venv/bin/)?(?:sycoca_ds/(?:train|evaluate|export)\.py)")


@dataclass(frozen=True)
class Typed:
    """A command as a page has it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def plain(line: str) -> list[str]:
    """The words of a line of shell, without its comment, redirections, environment and `&`."""
    words = shlex.split(line.replace("$split", "train"), comments=True)
    words = words[
        : next((place for place, word in enumerate(words) if word in ("&", "|", "||", "&&", ">", ">>") or word[:2] == "2>"), None)
    ]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def typed_in(path: Path) -> list[Typed]:
    """Lines of its blocks of shell, and what between single backticks begins with a program and goes on with an argument."""
    text, name = path.read_text(), path.relative_to(REPOSITORY).as_posix()
    lines = [
        line
        for kind, body in BLOCK.findall(text)
        if kind in ("sh", "bash", "console")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    inline = [
        code.replace("\\|", "|")
        for code in INLINE.findall(BLOCK.sub("", text))
        if code.split()[0] in PROGRAMS and len(code.split()) > 1
    ]
    found = []
    for line in (*lines, *inline):
        words = plain(line)
        if words and words[0] in PROGRAMS and "..." not in words:
            found.append(Typed(name, tuple(words)))
    return found


TYPED = [typed for page in PAGES if page.exists() for typed in typed_in(page)]


@functools.cache
def known_options(name: str) -> frozenset[str]:
    return frozenset(options_of(name)) | {"--help"}


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


def check(typed: Typed) -> None:
    """Raises for a command that its program would refuse by its words alone."""
    name, rest = entry_of(typed.words)
    if name is None:
        if typed.words[0] == "make":
            targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
            assert {word for word in typed.words[1:] if "=" not in word} <= targets
        return
    own = rest[: rest.index("--")] if "--" in rest else rest
    given = {word.split("=")[0] for word in own if word.startswith("--")}
    if name == "train":
        parse_options(divide(rest)[1])
        return
    known = known_options(name) | (known_options("train") if name == "plan" else set())
    assert given <= known, f"sycoca {name} has no {sorted(given - known)}"
    if "--" in rest and name in ("ablations", "launch print"):
        parse_options(rest[rest.index("--") + 1 :])
    if "--" in rest and name == "supervise":
        check(Typed(typed.page, tuple(rest[rest.index("--") + 1 :])))


@pytest.mark.parametrize("page", sorted({typed.page for typed in TYPED}))
def test_every_command_of_a_page_is_one(page: str) -> None:
    wrong = []
    for typed in TYPED:
        if typed.page == page:
            try:
                check(typed)
            except (AssertionError, UserError) as error:
                wrong.append(f"{shlex.join(typed.words)}: {error}")
    assert not wrong


def test_commands_are_found_and_wrong_ones_refused() -> None:
    assert len(TYPED) > 100 and {typed.words[0] for typed in TYPED} >= {"sycoca", "python", "deepspeed", "make"}
    for line in (
        "make nothing",
        "python -m data_pipeline build --sorce cc12m",
        "deepspeed --hostfil x sycoca_ds/train.py",
        "deepspeed sycoca_ds/train.py --optim.lrr 1",
        "python sycoca_ds/evaluate.py --checkpont x",
        "python -m sycoca_ds.supervise -- deepspeed sycoca_ds/train.py --optim.lrr 1",
        "sycoca evaluate",
    ):
        with pytest.raises((AssertionError, UserError)):
            check(Typed("here", tuple(plain(line))))


def anchors(path: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", BLOCK.sub("", path.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    pages = [*PAGES, *sorted((REPOSITORY / "benchmarks/results").glob("*.md"))]
    seen, broken = 0, []
    for page in (page for page in pages if page.exists()):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            seen += 1
            name, _, anchor = target.partition("#")
            place = (page.parent / name).resolve() if name else page
            if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
                broken.append((page.name, target))
    assert seen > 100 and not broken
