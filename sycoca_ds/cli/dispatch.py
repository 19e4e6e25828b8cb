"""`sycoca COMMAND ...`: finds the command, gives it its words, and returns its exit status."""

from __future__ import annotations

import importlib
import sys

from data_pipeline.command_line import CALLED, no_such_command
from data_pipeline.errors import leaves, run_command
from sycoca_ds import __version__
from sycoca_ds.cli.table import COMMANDS, MOST_WORDS, TABLE, Command, below

ROOMS = {
    "data": "catalogues of URLs to verified shards",
    "launch": "a launch on several hosts, looked at before it starts",
}
"""First words that are no command themselves."""
FEW = 5
"""Commands of a room that are named in the line of the room."""
HELP = {"-h", "--help"}
HELP_WORD = "help"
"""`sycoca help COMMAND` is `sycoca COMMAND --help`."""


def overview() -> str:
    """All commands, a line each, grouped; those of a room together."""
    width = max(len(name) for name in (*COMMANDS, *ROOMS) if " " not in name) + 2
    lines = ["usage: sycoca COMMAND [OPTIONS]", "", "SyCoCa, CoCa and CLIP: from catalogues of URLs to the paper's tables."]
    for title, commands in TABLE.items():
        lines += ["", f"{title}:"]
        first_words = dict.fromkeys(name.split()[0] for name in commands)
        for word in first_words:
            says = ROOMS[word] if word in ROOMS else COMMANDS[word].says
            inner = list(dict.fromkeys(name.split()[0] for name in below(word)))
            listed = ", ".join(inner) if len(inner) <= FEW else f"{len(inner)} commands: sycoca {word}"
            lines.append(f"  {word:<{width}}{says}" + (f" ({listed})" if inner else ""))
    lines += [
        "",
        "sycoca COMMAND --help, or sycoca help COMMAND, says all of one; sycoca --version. docs/command_line.md has exit statuses.",
    ]
    return "\n".join(lines)


def overview_of(word: str) -> str:
    """The commands of a room."""
    inner = below(word)
    width = max(map(len, inner)) + 2
    lines = [f"usage: sycoca {word} COMMAND [OPTIONS]", "", f"{ROOMS[word]}", "", "commands:"]
    lines += [f"  {name:<{width}}{command.says}" for name, command in inner.items()]
    return "\n".join([*lines, "", f"Options of a command: sycoca {word} COMMAND --help"])


def find(words: list[str]) -> tuple[str, list[str]]:
    """(name of the command, the words behind it).

    Raises:
        UserError: there is none of that name; it says which one is nearest.
        SystemExit: help was asked for (0), or nothing was asked for (2).
    """
    if words[:1] == [HELP_WORD]:
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        print(overview())
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(f"sycoca {__version__}")
        raise SystemExit(0)
    name = next((" ".join(words[:n]) for n in range(MOST_WORDS, 0, -1) if " ".join(words[:n]) in COMMANDS), None)
    rest = words[len(name.split()) :] if name else words[1:]
    inner = below(name or words[0])
    if inner and (not rest or rest[0] in HELP) and name is None:
        print(overview_of(words[0]))
        raise SystemExit(0 if rest else 2)
    if inner and rest and not rest[0].startswith("-"):
        raise no_such_command(rest, inner, f"sycoca {words[0]}")
    if name is None:
        raise no_such_command(words, list(dict.fromkeys(known.split()[0] for known in COMMANDS)), "sycoca")
    return name, rest


def start(name: str, command: Command, rest: list[str]) -> int:
    """Runs a command with the words behind its name."""
    leaves(command.kept)
    CALLED[command.program] = f"sycoca {name}".removesuffix(" " + " ".join(command.words))
    own = rest[: rest.index("--")] if "--" in rest else rest
    before = () if HELP & set(own) and command.words and command.words[0].startswith("--") else command.words
    sys.argv = [f"sycoca {name}", *before, *rest]
    module, function = command.target.split(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except SystemExit as stop:
        if HELP & set(own) and stop.code in (0, None):
            print(f"\nexample:\n  sycoca {name} {command.example}")
            if below(name):
                print("\nmore: " + ", ".join(f"sycoca {name} {other}" for other in below(name)))
        raise


def dispatch() -> int:
    """`sycoca` with the words of sys.argv."""
    name, rest = find(sys.argv[1:])
    return start(name, COMMANDS[name], rest)


def main() -> int:
    return run_command(dispatch)
