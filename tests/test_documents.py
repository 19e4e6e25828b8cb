"""Pages are true: every command in them is one that the programs take, every link leads somewhere. test_pages.py runs them."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.cli.completion import options_of
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
