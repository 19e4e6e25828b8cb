"""Command lines from dataclasses (tyro), with every complaint on one line."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.errors import UserError, leaves

HELP_INDENT = 7
"""Columns by which tyro indents what it says, at most; help texts begin further right."""
RULE = re.compile("\u2500{3}|-{20}")
"""The frame's upper edge, with the title in it, its lower one, or a line between two parts; where stdout takes ASCII only, without
edges."""
NO_KIND_FITS = re.compile(r"Value error: Error parsing (--\S+): no type matching (.+?) could be instantiated from \[(.*?)\]\. .*")
"""What tyro says of a value that is none of a union's kinds; then follows why each of them does not fit."""


NO_CHOICE = re.compile(r"invalid choice '(.*?)' for argument '(--[^']+)'\. Expected one of \((.*?)\)")
"""What tyro says of a value that is none of an option's choices. Where it need not be given 'None' is among them, and their order
is another one each time."""

UNKNOWN = re.compile(r"Unrecognized options: (?:.*? )??(--[^\s=,]+)")
"""What tyro says of options that there are not; where a required one is missing, too, it says that first, and names no nearest."""

CALLED: dict[str, str] = {}
"""How a program is called -> how the user has called it: the command `sycoca` is one for all."""


def called(program: str) -> str:
    """`python -m data_pipeline build` as the user would type it: `sycoca data build`, where that is what was typed."""
    for name, other in CALLED.items():
        if program == name or program.startswith(f"{name} "):
            return other + program[len(name) :]
    return program


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def no_such_command(words: Sequence[str], known: Iterable[str], program: str) -> UserError:
    """The error for a command line whose first words are none of `known`, which have one word or two."""
    known = list(known)
    meant = nearest(" ".join(words[:2]), [name for name in known if " " in name]) or nearest(words[0], known)
    return UserError(
        f"command {words[0]!r}: no such command{meant} (expected one of {', '.join(known)}; see {called(program)} --help)"
    )


def chosen(words: Sequence[str], program: str, title: str, commands: Mapping[str, str], more: str = "") -> str:
    """The first word, one of `commands`.

    Args:
        title: what all of them are for. commands: name -> what it does. more: said at the end of the list.

    Raises:
        UserError: there is none of that name.
        SystemExit: after the list, which was asked for (0), or nothing was asked for (2).
    """
    if not words or words[0] in ("-h", "--help"):
        name, width = called(program), max(map(len, commands)) + 2
        print(f"usage: {name} COMMAND [OPTIONS]\n\n{title}\n\ncommands:")
        for command, says in commands.items():
            print(f"  {command:<{width}}{says}")
        print(f"\nOptions of a command: {name} COMMAND --help{more}")
        raise SystemExit(0 if words else 2)
    if words[0] not in commands:
        raise no_such_command(words, commands, program)
    return words[0]


def run_chosen(
    words: Sequence[str],
    program: str,
    title: str,
    commands: Mapping[str, tuple[str, str, str]],
    kept: Mapping[str, str] = types.MappingProxyType({}),
) -> int:
    """Runs the command that the first word names, and returns its exit status; raises as `chosen` and `parse_command` do.

    Args:
        commands: name -> (module, dataclass with `run`, what it does). kept: name -> what Ctrl-C leaves of it.
    """
    import importlib

    import tyro

    name = chosen(words, program, title, {name: says for name, (_, _, says) in commands.items()})
    leaves(kept.get(name, ""))
    module, kind, _ = commands[name]
    command = typing.Annotated[getattr(importlib.import_module(module), kind), tyro.conf.OmitArgPrefixes]
    return parse_command(command, list(words[1:]), f"{program} {name}").run()


def other_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`--image-size 48 (now 32), --dedup url (now none)`: the options with which a folder was begun and that have another value
    now; those of which only one side knows are left out.

    Args:
        before, now: values as JSON has them, by the names of their fields.
    """

    def said(value: Any) -> str:
        return " ".join(map(str, value)) or "none" if isinstance(value, list) else "none" if value is None else str(value)

    return ", ".join(
        f"--{name.replace('_', '-')} {said(before[name])} (now {said(value)})"
        for name, value in now.items()
        if name in before and before[name] != value
    )


def counted(number: int, noun: str) -> str:
    """`1 tar`, `2 tars`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def parse_command(kind: Any, arguments: list[str], program: str, **options: Any) -> Any:
    """`tyro.cli` without its boxes.

    Args:
        kind: a dataclass, or an annotated one.
        options: passed on to `tyro.cli` (`default`, `description`, `return_unknown_args`, ...).

    Raises:
        UserError: what tyro refuses, on one line; arguments that are not UTF-8, which fit into no record.
        SystemExit: after `--help`, with status 0.
    """
    import tyro

    _ask_typeguard_last()
    program = called(program)
    for argument in arguments:
        if re.search("[\ud800-\udfff]", argument):
            raise UserError(f"{argument!r}: expected a name in UTF-8; rename it")
    command = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    give_help_texts(command)
    if {"-h", "--help"} & set(arguments):
        print(filled(options.get("description") or inspect.getdoc(command) or ""), end="\n\n")
        options["description"] = ""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=program, args=arguments, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{one_line(complaint.getvalue(), option_names(command))}; see {program} --help") from None


@functools.cache
def _ask_typeguard_last() -> None:
    """tyro asks typeguard, whose import takes a fifth of a second, whether a default of `int | None` or of a tuple is one. Here its
    own question is asked of the members instead; of other kinds, and by a tyro that asks elsewhere, nothing changes."""
    from tyro import _resolver

    asked = getattr(_resolver, "is_instance", None)

    def is_instance(kind: Any, value: Any) -> bool:
        origin, members = typing.get_origin(kind), typing.get_args(kind)
        if origin is types.UnionType:
            return any(is_instance(member, value) for member in members)
        if origin is not tuple:
            return asked(kind, value)
        if members[1:] == (...,):
            members = members[:1] * len(value) if isinstance(value, tuple) else ()
        return isinstance(value, tuple) and len(value) == len(members) and all(map(is_instance, members, value))

    if asked is not None:
        _resolver.is_instance = is_instance


def option_names(kind: type) -> list[str]:
    """`--NAME` of a dataclass's fields, and of the fields of dataclasses in it."""
    import tyro

    found = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items() if dataclasses.is_dataclass(kind) else ():
        given, *marks = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        if dataclasses.is_dataclass(given):
            found += option_names(given)
        elif tyro.conf.Positional not in marks:
            named = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
            found.append("--" + named.replace("_", "-"))
    return found


def help_texts(kind: type) -> dict[str, str]:
    """The docstrings under a dataclass's fields, those of its parents' included, each as one line, by the fields' names."""
    return {
        name: text
        for parent in reversed(kind.__mro__[:-1])
        for name, text in _texts_in(parent.__module__).get(parent.__name__, {}).items()
    }


@functools.cache
def _texts_in(module: str) -> dict[str, dict[str, str]]:
    """{class: {field: docstring under it}} of a module, whose source is read once; the usual library reads it for each class."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                field.target.id: " ".join(below.value.value.split())
                for field, below in itertools.pairwise(node.body)
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
            }
    return found


@functools.cache
def give_help_texts(kind: type) -> None:
    """Hands tyro the texts of a dataclass's fields, and of dataclasses in it, each as one line: broken as in the source, lines
    would be broken a second time at the terminal's width."""
    hints, texts = typing.get_type_hints(kind), help_texts(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            give_help_texts(hints[item.name])
        elif item.name in texts:
            item.metadata = types.MappingProxyType({**item.metadata, "help": texts[item.name]})


def filled(text: str) -> str:
    """Paragraphs broken at the terminal's width; indented ones, which are examples, stay as they are."""
    width = shutil.get_terminal_size().columns
    parts = [part.strip("\n") for part in re.split(r"\n\s*\n", text.strip("\n"))]
    return "\n\n".join(part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), width) for part in parts)


def one_line(complaint: str, known: Iterable[str] = ()) -> str:
    """tyro's framed complaint as one line: the frame taken off, help texts (indented deeper, or a part of their own), and the
    frame's title where what stands below it begins with the same words. A misspelt option comes before a required one that is
    missing, which is most often the same.

    Args:
        known: the options that there are.
    """
    parts: list[list[str]] = [[]]
    for line in complaint.splitlines():
        if RULE.search(line):
            parts.append([])
        text = re.sub(r"[^\x20-\x7e]|-{20,}", " ", line).rstrip()
        if text and len(text) - len(text.lstrip()) <= HELP_INDENT:
            parts[-1].append(text.strip())
    parts = [part for part in parts if part]
    title = parts[0].pop(0)
    said, *others = [" ".join(part) for part in parts if part] or [title]
    said = said if said.lower().startswith(title.lower()) else f"{title}: {said}"
    if found := NO_CHOICE.match(said):
        known = re.findall(r"'([^']*)'", found[3])
        known = sorted(set(known) - {"None"}) if "None" in known else known
        said = f"{found[2]} {found[1]}: no such choice{nearest(found[1], known)} (expected one of {', '.join(known)})"
    if found := NO_KIND_FITS.fullmatch(said):
        said = f"{found[1]} {found[3]}: expected {re.sub('[{}]', '', found[2]).replace('|', ' or ')}"
    told = [text.rstrip(".") for text in (said, *others) if not text.startswith(("For full helptext", "Argument helptext"))]
    for place, text in enumerate(told):
        if place and (found := UNKNOWN.match(text)):
            told = [text + nearest(found[1], known), *told[:place], *told[place + 1 :]]
    return "; ".join(told)
