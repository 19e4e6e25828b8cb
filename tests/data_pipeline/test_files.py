"""Places for folders: what cannot be one is said in a line, before and when it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.files import check_folder, make_folder, write_text

REASONS = {"a.jpg/x": "Not a directory", "a.jpg/x/y": "Not a directory", "/proc/x": "No such file or directory"}


@pytest.mark.parametrize("name", REASONS)
def test_no_place_for_a_folder_is_said_in_a_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    folder = tmp_path / name
    said = f"{folder}: expected a folder, or a place for one ({REASONS[name]}); choose another"
    for refuses in (check_folder, make_folder):
        with pytest.raises(UserError) as error:
            refuses(folder)
        assert str(error.value) == said
    with pytest.raises(OSError, match=REASONS[name]):  # in the middle of a run, which goes on without the file
        write_text(folder / "x.json", "")


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out", "a/b/out", tmp_path, tmp_path / "c/d"):
        check_folder(Path(name))
    assert list(tmp_path.iterdir()) == []
