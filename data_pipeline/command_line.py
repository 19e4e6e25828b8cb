"""Command lines from dataclasses (tyro), with every complaint on one line."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

from data_pipeline.errors import UserError

HELP_INDENT = 7
"""Columns by which tyro indents what it says, at most; help texts begin further right."""


def parse_command(kind: Any, arguments: list[str], program: str, **options: Any) -> Any:
    """`tyro.cli` without its boxes.

    Args:
        kind: a dataclass, or an annotated one.
        options: passed on to `tyro.cli` (`default`, `description`, `return_unknown_args`, ...).

    Raises:
        UserError: what tyro refuses, on one line.
        SystemExit: after `--help`, with status 0.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=program, args=arguments, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{one_line(complaint.getvalue(), program)}; see {program} --help") from None


def one_line(complaint: str, program: str) -> str:
    """tyro's framed complaint as one line: frame and help texts (indented deeper) taken off."""
    lines = [re.sub(r"[^\x20-\x7e]", " ", line).rstrip() for line in complaint.splitlines()]
    lines = [line.strip() for line in lines if line and len(line) - len(line.lstrip()) <= HELP_INDENT]
    return " ".join(line for line in lines if not line.startswith(("For full helptext", "Argument helptext", program)))
