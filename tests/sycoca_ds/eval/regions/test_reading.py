"""Which layout is taken for which."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.regions.annotated import names_of
from sycoca_ds.eval.regions.reading import open_layout
from tests.worlds.data.one_picture import one_picture


def test_what_is_of_no_layout_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"images": []}')
    (tmp_path / "half.json").write_text('{"images": [')
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("none.json", "no such file or folder; expected a drawn world's SPLIT_regions.json"),
        ("list.json", "of no known layout"),
        ("other.json", "of no known layout"),
        ("empty", "of no known layout"),
        ("half.json", "not readable as JSON"),
    ):
        with pytest.raises(UserError) as error:
            open_layout(tmp_path / name)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_names_of_a_picture() -> None:
    assert names_of(one_picture("http://x/a%20b/photo.v2.JPEG?size=3", "dir/0001")) == ["photo.v2", "0001"]
    assert names_of(one_picture("wds:cc3m-0001/0000012.5", "0000012.5")) == ["0000012.5", "0000012.5"]
