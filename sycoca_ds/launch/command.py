"""`python -m sycoca_ds.launch COMMAND`: a launch on several hosts, looked at before it is started."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

from data_pipeline.command_line import called, chosen, parse_command
from data_pipeline.errors import UserError

PROGRAM = "python -m sycoca_ds.launch"
TITLE = "A launch on several hosts, looked at before it is started."
COMMANDS = {
    "check": ("sycoca_ds.launch.check", "CheckCommand", "what would stop the launch, on every host"),
    "files": ("sycoca_ds.launch.files", "FilesCommand", "hostfile, environment and job templates to edit; --out FOLDER"),
    "print": ("sycoca_ds.launch.commands", "PrintCommand", "what would run on each host; -- OPTIONS OF train.py"),
}


def parse(arguments: list[str]) -> tuple[Any, list[str]]:
    """(the command's dataclass, filled; what stands after `--`).

    Raises:
        UserError: anything tyro refuses, on one line.
        SystemExit: after `--help`.
    """
    says = {name: text for name, (_, _, text) in COMMANDS.items()}
    chosen(arguments, PROGRAM, TITLE, says, ". docs/launching.md has the launches themselves.")
    import tyro

    module, name, _ = COMMANDS[arguments[0]]
    kind = getattr(importlib.import_module(module), name)
    own, rest = arguments[1:], []
    if "--" in own:
        place = own.index("--")
        own, rest = own[:place], own[place + 1 :]
    if rest and arguments[0] != "print":
        raise UserError(
            f"{' '.join(rest)[:60]}: {arguments[0]} takes nothing after `--`; see {called(PROGRAM)} {arguments[0]} --help"
        )
    return parse_command(Annotated[kind, tyro.conf.OmitArgPrefixes], own, f"{PROGRAM} {arguments[0]}"), rest


def main() -> int:
    command, rest = parse(sys.argv[1:])
    return command.run(*rest)
