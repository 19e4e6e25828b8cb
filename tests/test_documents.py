"""Pages are true: every command in them is one that the programs take, every link leads somewhere. test_pages.py runs them."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.cli.completion import options_of
from sycoca_ds.cli.table import COMMANDS
from sycoca_ds.cli.train import divide
from sycoca_ds.options import parse_options
from tests.worlds import REPOSITORY
from tests.worlds.pages.typed import BLOCK, PAGES, TYPED, Typed, entry_of, plain


@functools.cache
def known_options(name: str) -> frozenset[str]:
    return frozenset(options_of(name)) | {"--help"}


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
    assert given <= known_options(name), f"sycoca {name} has no {sorted(given - known_options(name))}"
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


def test_a_link_that_is_called_like_a_page_leads_to_that_page() -> None:
    wrong = [
        (page.name, text, target)
        for page in PAGES
        for text, target in re.findall(r"\[([\w./-]+\.md)\]\(([^)#\s]+)", page.read_text())
        if Path(text).name != Path(target).name
    ]
    assert not wrong


COMMAND_LINE = (REPOSITORY / "docs/command_line.md").read_text()


def commands_in(text: str) -> set[str]:
    """Names of commands between backticks; `compare` behind `eval datasets` is one of the same room."""
    found, room = set(), ""
    for name in re.findall(r"`(?:sycoca )?([a-z -]+?)(?: [A-Z]+)?`", text):
        known = [one for one in (name, f"{room} {name}") if one in COMMANDS]
        room = known[0].split()[0] if known and " " in known[0] else room
        found |= set(known[:1]) or {one for one in COMMANDS if one.startswith(f"{name} ")} or {f"no command: {name}"}
    return found


def rows_of(header: str) -> dict[str, str]:
    """{first cell: second cell} of the table with that header."""
    table = COMMAND_LINE.split(header, 1)[1].split("\n\n", 1)[0]
    return dict(line.strip("| ").split(" | ")[:2] for line in table.splitlines()[2:])


def test_the_page_of_the_command_line_has_every_command() -> None:
    named = set().union(*map(commands_in, rows_of("| command | is | does |")))
    assert named == set(COMMANDS)


def test_what_has_a_dry_run_and_what_an_interrupt_leaves_is_said() -> None:
    dry = {name for name in COMMANDS if "--dry-run" in options_of(name)}
    listed = re.search(r"changes nothing: (.*?)\.\s", COMMAND_LINE, re.DOTALL)[1]
    assert commands_in(listed) == dry and len(dry) > 10
    left = set().union(*map(commands_in, rows_of("| command | after Ctrl-C there is |")))
    assert left == dry | {"caption", "search", "explore"}


def test_what_an_interrupt_leaves_is_said_in_the_words_of_the_page() -> None:
    """But for the two that save first and say so, and the server, whose end it is."""
    page = {name: kept for names, kept in rows_of("| command | after Ctrl-C there is |").items() for name in commands_in(names)}
    said = {name: command.kept for name, command in COMMANDS.items() if command.kept}
    assert said.keys() == page.keys() - {"train", "supervise", "explore"}
    assert {name for name, kept in said.items() if not re.match(rf"{re.escape(kept)}(?=$|[:;,])", page[name])} == set()
