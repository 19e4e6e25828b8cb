"""README.md of an exported folder: what it tells somebody to type works."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from sycoca_ds.exporting.about import _losses
from sycoca_ds.exporting.card import CARD, write_card
from sycoca_ds.exporting.source import Source
from sycoca_ds.options import parse_options
from tests.worlds import REPOSITORY
from tests.worlds.open_clip.world import SMALL


def test_the_packages_for_open_clip_are_those_of_the_page_and_of_the_tests(tmp_path: Path) -> None:
    """open_clip's `generate` works with few versions of transformers: the one that is tried is the one that is named."""
    facts = {"kind": "test", "path": "run", "step": 1, "samples": 2}
    of_weights = {"file": "open_clip_model.safetensors", "sha256": "0" * 64, "parameters": 10**6, "dtype": "float32"}
    write_card(tmp_path, "open_clip", Source(SMALL, {}, None, facts), of_weights, [], None, None)
    page, script = REPOSITORY / "docs/open_clip.md", REPOSITORY / "tests/worlds/open_clip/peer.sh"
    found = [
        set(re.findall(r"\b(open_clip_torch|transformers)([=<>~!][^\s\"'`]+)", path.read_text()))
        for path in (tmp_path / CARD, page, script)
    ]
    assert found[0] == found[1] == found[2] and {name for name, _ in found[0]} == {"open_clip_torch", "transformers"}


def test_the_losses_are_those_that_trained_the_weights() -> None:
    config = parse_options(["--preset", "tiny"])
    late = dataclasses.replace(config, loss=dataclasses.replace(config.loss, late_interaction=0.1))
    assert list(_losses(config)) == ["itc", "ic", "mim"] and _losses(late)["late_interaction"] == 0.1
    assert _losses(dataclasses.replace(config, task="vqa")) == {"vqa": 1.0}


def test_the_peers_size_is_one_number() -> None:
    """Of the script, the target that calls it, and the page."""
    pages = ("tests/worlds/open_clip/peer.sh", "Makefile", "docs/open_clip.md", "docs/performance.md")
    found = {
        path: re.findall(
            r"(?:benchmarks/: about|environment,|build/open_clip \(|`make peer` first,) ?(\d+) MB", (REPOSITORY / path).read_text()
        )
        for path in pages
    }
    assert len({number for numbers in found.values() for number in numbers}) == 1 and all(found.values()), found
