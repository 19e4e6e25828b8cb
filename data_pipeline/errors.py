"""Errors a user can mend. One line, four parts: what is wrong, where, what was expected, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input from the outside (a flag, a file, a row). Entry points print it on one line and exit with status 2."""


def one_line(error: Exception) -> str:
    """What another library's exception says, its first line that says something."""
    said = str(getattr(error, "java_exception", None) or error)  # py4j's own first line says only that Java failed
    return next((line.strip()[:300] for line in said.splitlines() if line.strip()), type(error).__name__)


def run_command(main: Callable[[], int | None]) -> int:
    """Runs an entry point; a `UserError` becomes `error: ...` on stderr and status 2, Ctrl-C becomes 130."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr, flush=True)
        return 130
