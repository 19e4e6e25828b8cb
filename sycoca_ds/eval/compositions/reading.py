"""`--compositions NAME=FOLDER` -> benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from sycoca_ds.eval.compositions import aro, sugarcrepe, winoground
from sycoca_ds.eval.compositions.items import CompositionSet

READERS: dict[str, Callable[[Path, Path | None], list[CompositionSet]]] = {
    sugarcrepe.NAME: sugarcrepe.read_sugarcrepe,
    winoground.NAME: winoground.read_winoground,
    aro.NAME: aro.read_aro,
}
OF: dict[str, str] = {sugarcrepe.NAME: sugarcrepe.NAME, winoground.NAME: winoground.NAME, **dict.fromkeys(aro.FILES, aro.NAME)}
"""{set: the NAME it is given by}."""


def read_compositions(texts: Sequence[str]) -> tuple[CompositionSet, ...]:
    """
    Args:
        texts: NAME=FOLDER, or NAME=FOLDER,PICTURES where the pictures are not in the folder.

    Raises:
        UserError: not of this form, a name twice, files that are not there or not as their benchmark has them.
    """
    found: list[CompositionSet] = []
    seen: set[str] = set()
    for text in texts:
        name, _, places = text.partition("=")
        folder, _, pictures = (places, "", "") if Path(places).is_dir() else places.rpartition(",")
        folder, pictures = (folder, pictures) if folder else (places, "")
        if name not in READERS:
            raise UserError(
                f"--compositions {text}: expected NAME=FOLDER or NAME=FOLDER,PICTURES, NAME one of {', '.join(READERS)}"
                f"{nearest(name, READERS)}"
            )
        if name in seen:
            raise UserError(f"--compositions {text}: {name} is given twice")
        seen.add(name)
        for place in filter(None, (folder, pictures)):
            if not Path(place).is_dir():
                raise UserError(f"--compositions {text}: {place} is no folder; expected NAME=FOLDER or NAME=FOLDER,PICTURES")
        if not folder:
            raise UserError(f"--compositions {text}: expected {name}=FOLDER")
        found += READERS[name](Path(folder), Path(pictures) if pictures else None)
    return tuple(found)
