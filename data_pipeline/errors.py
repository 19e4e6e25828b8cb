"""Errors a user can mend. One line, four parts: what is wrong, where, what was expected, what to do."""

from __future__ import annotations

import errno
import importlib
import os
import select
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from data_pipeline.own_package import ROOT

Result = TypeVar("Result")


EXTRAS = {
    "all": "numpy pyarrow fsspec tokenizers ftfy tyro rich jinja2 packaging PIL cv2",
    "data": "img2dataset webdataset duckdb urllib3 idna",
    "train": "torch deepspeed ninja tensorboard safetensors",
    "eval": "pycocoevalcap pycocotools matplotlib sklearn scipy",
    "explore": "flask waitress",
}
"""{extra of pyproject.toml: names by which its distributions are imported}; `all`: those that are always required."""
REQUIRED = {name: extra for extra, names in EXTRAS.items() for name in names.split()}
"""All that pyproject.toml's extra `all` requires to run, not to develop: the extra with which each is installed."""
KEPT = [""]
"""What Ctrl-C leaves of the command that runs here: set by `leaves`, said by `interrupted`."""


def leaves(kept: str) -> None:
    """Says of the command that begins what Ctrl-C leaves of its work; empty: nothing that outlives it is made."""
    KEPT[0] = kept


def interrupted() -> str:
    """What is said after Ctrl-C."""
    return f"interrupted; {f'kept: {KEPT[0]}; ' if KEPT[0] else ''}give the same command again"


class UserError(ValueError):
    """Bad input from the outside (a flag, a file, a row). Entry points print it on one line and exit with status 2."""


def to_run(command: str, folder: object) -> str:
    """A command of the data pipeline on a folder, as a shell takes it: what a user is told to give."""
    return f"python -m data_pipeline {command} --data {shlex.quote(str(folder))}"


def check_format(found: object, known: int, where: object, mend: str, oldest: int | None = None) -> None:
    """Holds the number of a file's format against those that this version reads.

    Args:
        found: what the file says.
        known: what this version writes.
        where: the file, for the error.
        mend: what to do about one that is too old.
        oldest: the oldest that is still read; default: `known`.

    Raises:
        UserError: it is newer, or older than `oldest`, or no number.
    """
    oldest = known if oldest is None else oldest
    reads = f"{oldest} to {known}" if oldest < known else str(known)
    if not isinstance(found, int) or found < oldest:
        raise UserError(f"{where}: format {found}, this version reads {reads}; {mend}")
    if found > known:
        raise UserError(f"{where}: format {found}, written by a newer version; this one reads {reads}: update it (CHANGELOG.md)")


def one_line(error: Exception) -> str:
    """What another library's exception says, its first line that says something."""
    said = str(getattr(error, "java_exception", None) or error)  # py4j's own first line says only that Java failed
    return next((line.strip()[:300] for line in said.splitlines() if line.strip()), type(error).__name__)


def nobody_reads(pipe: int) -> bool:
    """Whether the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


PYTHONS = (3, 10), (3, 12)
"""The oldest and the newest Python that this runs on."""


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raises `UserError` on a Python that is too old or too new, which would stop at some import without a word of that."""
    oldest, newest = (".".join(map(str, known)) for known in PYTHONS)
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        why = " (img2dataset 1.47 imports imghdr, which 3.13 no longer has)" if version > PYTHONS[1] else ""
        raise UserError(
            f"Python {version[0]}.{version[1]} ({sys.executable}): expected {oldest} to {newest}{why}; make an environment with "
            f"one of these: `python{newest} -m venv .venv`"
        )


def is_checkout() -> bool:
    """Whether this runs from a checkout, or from an installed wheel."""
    return (ROOT / "pyproject.toml").is_file()


def how_to_install(extra: str) -> str:
    """What puts an extra's packages into the environment, for whoever has a checkout, or the installed package."""
    return f"`make install`, or `pip install -e '.[{extra}]'`" if is_checkout() else f"`pip install 'sycoca-ds[{extra}]'`"


def in_the_environment(main: Callable[[], Result]) -> Result:
    """What `main` returns.

    Raises:
        UserError: a Python that is too old or too new; a distribution that pyproject.toml requires is not installed for it, most
            often since the environment is not active. That any other module is missing is an error of the program and passes.
    """
    check_python()
    try:
        return main()
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in REQUIRED:
            raise
        if not is_checkout():
            raise UserError(
                f"{name} is not installed for {sys.executable}: {how_to_install(REQUIRED[name])} brings it; or activate the "
                "environment that has it"
            ) from None
        raise UserError(
            f"{name} is not installed for {sys.executable}: activate the environment (`. .venv/bin/activate` in the project's "
            "folder); if there is none yet, `make install` makes it, or `pip install -e '.[all]'` fills one of your own"
        ) from None


def run_module(name: str) -> int:
    """`run_command` of a module's `main`, which is imported there: before that nothing is that may not be installed."""
    return run_command(lambda: importlib.import_module(name).main())


PLACES = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""What the system says of a place that a user has named and has to mend, not of a program that is wrong, nor of a disk, which
`supervise` tells by Python's own words."""


def run_command(main: Callable[[], int | None]) -> int:
    """Runs an entry point; a `UserError`, and a file or folder that cannot be read or written, becomes `error: ...` on stderr and
    status 2, Ctrl-C becomes 130, an output whose reader has seen enough (`| head`) 141, as of a program that the system ends for
    it."""
    try:
        try:
            return in_the_environment(main) or 0
        finally:  # help leaves by SystemExit, with all that it has to say still to be written
            if sys.stdout is not None:  # as where it was closed (`>&-`)
                sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter says it once more at its end
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        if error.errno not in PLACES or error.filename is None:
            raise
        said = (
            f"{os.fsdecode(error.filename)}: {error.strerror}: expected a place that this user may read and write; choose another"
        )
        print(f"error: {said}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(interrupted(), file=sys.stderr, flush=True)
        return 130
