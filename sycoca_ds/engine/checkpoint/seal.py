"""What makes a checkpoint folder whole: its seal, state.json, written last and renamed into place.

It carries size and sha256 of every other file, of a large one block by block, so that who reads a part of it can tell whether that
is whole; and a sha256 of its own content: one flipped bit in it could move a run by some steps. A folder without it is a save that
was interrupted, and is not looked at. DeepSpeed's own `latest` file is neither written nor read: it appears before all ranks are
done, and a missing one makes DeepSpeed train from scratch without a word.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, check_format
from data_pipeline.files import sha256_text, sync_folder, write_text
from data_pipeline.paths import PlainPaths

FORMAT = 3
OLDEST = 2
"""The oldest that is read; it has one sha256 for every file, whatever its size."""
BLOCK = 2 << 20
"""Bytes of a file that have a sha256 of their own, where it has more of them; the last block may be shorter."""
STATE_FILE = "state.json"
OLDER = "go on with the version that saved it, or export its weights with that and start from them (run.weights)"
"""What to do about a checkpoint whose format is no longer read: states of the optimizer are not converted."""
STEP_NAME = re.compile(r"step_(\d{8,})")


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step in a folder's name, None for a name of the user's own."""
    found = STEP_NAME.fullmatch(folder.name)
    return int(found[1]) if found else None


@contextlib.contextmanager
def for_deepspeed(folder: Path) -> Iterator[tuple[str, str]]:
    """(the folder above, the name) of a checkpoint for DeepSpeed to load from, which takes a `[` or `*` in a path for a pattern and
    finds nothing."""
    with contextlib.closing(PlainPaths()) as plain:
        same = plain(folder)
        yield str(same.parent), same.name


def write_seal(folder: Path, state: dict[str, Any]) -> None:
    """Makes the folder a checkpoint: from now on it is found, and is there after a power failure.

    Args:
        state: JSON values; `files` maps names to what `Digests.facts` gives.
    """
    state = {"format": FORMAT, **state}
    write_text(folder / STATE_FILE, json.dumps({**state, "seal": _seal(state)}, indent=1) + "\n")
    sync_folder(folder.parent)


def _seal(state: dict[str, Any]) -> str:
    return sha256_text(json.dumps(state, sort_keys=True, separators=(",", ":")))


def read_state(folder: Path) -> dict[str, Any]:
    """What a seal says, held against its own checksum and the folder's name.

    Raises:
        UserError: it cannot be read, or is not as it was written.
    """
    path = folder / STATE_FILE
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is damaged: expected a JSON object, found {type(state).__name__}")
    seal = state.pop("seal", None)
    if seal != _seal(state):
        if seal is None and "format" in state:
            check_format(state["format"], FORMAT, path, OLDER, OLDEST)
        raise UserError(f"{path} is damaged (its content is not what its own sha256 says)")
    check_format(state["format"], FORMAT, path, OLDER, OLDEST)
    if step_of(folder) not in (None, state["step"]):
        raise UserError(f"{path} is of step {state['step']}, not of its folder's: it was copied here from another checkpoint")
    return state


class Digests:
    """What a seal says of a file, from its bytes in order, in pieces of any size."""

    def __init__(self) -> None:
        self.size, self._block, self._blocks = 0, hashlib.sha256(), []

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self.size and self.size % BLOCK == 0:
                self._blocks.append(self._block.hexdigest())
                self._block = hashlib.sha256()
            part = view[: BLOCK - self.size % BLOCK]
            self._block.update(part)
            self.size, view = self.size + len(part), view[len(part) :]

    def facts(self) -> dict[str, Any]:
        """`bytes`, and `sha256`, or of more than one block `blocks`, the sha256 of each."""
        last = self._block.hexdigest()
        return {"bytes": self.size, **({"blocks": [*self._blocks, last]} if self._blocks else {"sha256": last})}


def digests(path: Path, whole: bool = False) -> dict[str, Any]:
    """`Digests.facts` of a file that is there; `whole`: with one sha256 whatever its size, as format 2 has it. Raises `OSError`."""
    found, one = Digests(), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            (one if whole else found).update(block)
    return {"bytes": path.stat().st_size, "sha256": one.hexdigest()} if whole else found.facts()


def is_as_written(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file is what its seal says; reads it. Raises `OSError`."""
    return path.stat().st_size == facts["bytes"] and digests(path, whole="sha256" in facts) == facts


def sealed(checkpoints: Path) -> list[Path]:
    """Folders of finished saves, newest step first."""
    found = [path.parent for path in checkpoints.glob(f"step_*/{STATE_FILE}") if step_of(path.parent) is not None]
    return sorted(found, key=step_of, reverse=True)


def remove_unsealed(checkpoints: Path) -> list[Path]:
    """Deletes what interrupted saves and deletions left: folders of steps without a seal. Only under the run's lock."""
    left = [folder for folder in sorted(checkpoints.glob("step_*")) if step_of(folder) is not None and folder.is_dir()]
    left = [folder for folder in left if not (folder / STATE_FILE).exists()]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return left


def damage(folder: Path, part: int = 0, parts: int = 1, patterns: Sequence[str] = ("*",)) -> str | None:
    """What is wrong with a sealed checkpoint, naming the file, or None. Reads and hashes every file.

    Args:
        part, parts: looks at every `parts`-th file, from the `part`-th on, and always at the seal.
        patterns: looks only at files whose names match one of them.
    """
    try:
        files = read_state(folder)["files"]
    except UserError as error:
        return str(error)
    for name, facts in sorted(files.items())[part::parts]:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        path = folder / name
        try:
            if not path.is_file():
                return f"{path} is missing"
            if not is_as_written(path, facts):
                return f"{path} is damaged (its size or sha256 is not what {STATE_FILE} says)"
        except OSError as error:
            return f"{path} cannot be read ({error})"
    return None


def newest_whole(
    checkpoints: Path, folders: list[Path] | None = None, look: Callable[[Path], str | None] = damage, otherwise: str = ""
) -> tuple[Path | None, list[str]]:
    """(newest checkpoint whose files all verify, or None; what was wrong with the newer ones).

    Args:
        folders: the sealed ones, newest first; None: those that are there.
        look: folder -> what is wrong with it, or None.
        otherwise: what else than restoring one can be done, for the error.

    Raises:
        UserError: there are sealed checkpoints and every one is damaged. Starting afresh is the user's decision.
    """
    problems = []
    for folder in sealed(checkpoints) if folders is None else folders:
        problem = look(folder)
        if problem is None:
            return folder, problems
        problems.append(problem)
    if problems:
        raise UserError(f"every checkpoint in {checkpoints} is damaged ({'; '.join(problems)}): restore one{otherwise}")
    return None, problems
