"""`python -m sycoca_ds.launch COMMAND`: a launch on several hosts, looked at before it is started."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

from data_pipeline.command_line import called, no_such_command, parse_command
from data_pipeline.errors import UserError

PROGRAM = "python -m sycoca_ds.launch"
COMMANDS = {
    "check": ("sycoca_ds.launch.check", "CheckCommand", "what would stop the launch, on every host"),
    "files": ("sycoca_ds.launch.files", "FilesCommand", "hostfile, environment and job templates to edit; --out FOLDER"),
    "print": ("sycoca_ds.launch.commands", "PrintCommand", "what would run on each host; -- OPTIONS OF train.py"),
}
HELP = (
    f"usage: {PROGRAM} COMMAND [OPTIONS]\n\nA launch on several hosts, looked at before it is started.\n"
    + "\ncommands:\n"
    + "".join(f"  {name:<8}{text}\n" for name, (_, _, text) in COMMANDS.items())
    + f"\nOptions of a command: {PROGRAM} COMMAND --help. docs/launching.md has the launches themselves.\n"
)


def parse(arguments: list[str]) -> tuple[Any, list[str]]:
    """(the command's dataclass, filled; what stands after `--`).

    Raises:
        UserError: anything tyro refuses, on one line.
        SystemExit: after `--help`.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.replace(PROGRAM, called(PROGRAM)), end="")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in COMMANDS:
        raise no_such_command(arguments, COMMANDS, PROGRAM)
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
