"""docs/configuration.md says what the dataclasses say, in words that the command line takes."""

from __future__ import annotations

import re

import pytest

from sycoca_ds.config import TrainConfig
from sycoca_ds.options import field_names, parse_options
from sycoca_ds.presets import PRESETS
from sycoca_ds.reference import page
from tests.worlds import REPOSITORY

ROW = re.compile(r"^\| `--([\w.-]+)` \| (.+?) \| (none|`[^`]*`) \| (.+) \|$", re.MULTILINE)


def words_of(name: str, kind: str, value: str) -> list[str]:
    if kind == "flag":
        head, _, last = name.rpartition(".")
        return [f"--{name}" if value == "`True`" else f"--{head}.no-{last}"]
    return [] if value == "none" else [f"--{name}", *value.strip("`").split()]


def test_the_page_is_written_from_the_dataclasses() -> None:
    assert (REPOSITORY / "docs/configuration.md").read_text() == page(), "python -m sycoca_ds.reference > docs/configuration.md"


def test_every_field_has_its_row_and_its_text() -> None:
    rows = ROW.findall(page())
    assert [name for name, *_ in rows] and {name for name, *_ in rows} == set(field_names(TrainConfig))
    assert not [name for name, *_, text in rows if not text.rstrip().endswith((".", ")"))]


def test_defaults_as_they_are_printed_are_the_defaults() -> None:
    """Over a preset that has others, all typed at once."""
    rows = [row[:3] for row in ROW.findall(page()) if row[0] != "task"]
    words = [word for row in rows for word in words_of(*row)]
    assert parse_options(["--preset", "tiny", *words]) == TrainConfig()


@pytest.mark.parametrize("name", ["tiny", "930m", "coca_ViT-L-14"])
def test_what_a_preset_changes_makes_the_preset(name: str) -> None:
    listed = re.search(rf"^- \*\*`{re.escape(name)}`\*\*: (.*)$", page(), re.MULTILINE)
    assert listed is not None
    kinds = {row[0]: row[1] for row in ROW.findall(page())}
    changes = re.findall(r"([\w.-]+) (none|`[^`]*`)", listed[1])
    words = [word for key, value in changes for word in words_of(key, kinds[key], value)]
    base = [word for row in ROW.findall(page()) if row[0] != "task" for word in words_of(*row[:3])]
    assert parse_options([*base, *words]) == PRESETS[name]
