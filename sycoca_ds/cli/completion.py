"""`sycoca completion bash|zsh|fish`: a script with which a shell completes commands, options and their values.

The script is static, so that a TAB costs no start of Python. What is in it comes from the commands' own --help: whoever adds a
command or an option to those need not think of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from data_pipeline.command_line import CALLED, parse_command
from sycoca_ds.cli.dispatch import ROOMS, start
from sycoca_ds.cli.table import COMMANDS
from sycoca_ds.cli.train import FLAGS, WITH_VALUE

PROGRAM = "sycoca completion"
OPTION = re.compile(r"(?:-\w, )?(--[a-zA-Z][\w.-]*\w)(?:, (--[\w.-]+))?(?:[ ,]|$)(.*)")
"""An option at the beginning of a line of help, perhaps with its opposite, and what follows it."""
CHOICES = re.compile(r"\[*\{([^}]*)\}")
PLAIN = ""
"""In place of an option: the words that stand by themselves."""
NO_CHOICE = {"None"}
FRAME = re.compile("[\u2500-\u257f\n]")
INDENT = 4
"""Columns by which options are indented, 1 at least: what is said of a command has none, what is said of options has more."""
WIDTH = "120"
"""Of the help that is read, columns: from some width on frames stand side by side, and without lines between them."""


@dataclass(frozen=True)
class CompletionOptions:
    """Writes a completion script to standard output; put it where the shell looks.

    bash: sycoca completion bash > ~/.local/share/bash-completion/completions/sycoca

    zsh: sycoca completion zsh > FOLDER_IN_FPATH/_sycoca

    fish: sycoca completion fish > ~/.config/fish/completions/sycoca.fish"""

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """For which shell."""


def options_in(text: str) -> dict[str, tuple[str, ...]]:
    """{option: its choices, where it has some} from a command's --help; at `PLAIN` the choices of words without an option."""
    found: dict[str, tuple[str, ...]] = {}
    for part in FRAME.split(text):
        words, indent = part.strip(), len(part) - len(part.lstrip())
        match = OPTION.match(words)
        if not 1 <= indent <= INDENT or not (match or CHOICES.match(words)):
            continue
        choices = CHOICES.match(match[3].strip() if match else words)
        values = [value for value in choices[1].split(",") if value not in NO_CHOICE] if choices else []
        for name in (match[1], *filter(None, [match[2]])) if match else [PLAIN]:
            found.setdefault(name, tuple(values))
    return found


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """The block may change what a command's start changes in this process, and the terminal's width."""
    words, names, environment = list(sys.argv), dict(CALLED), dict(os.environ)
    try:
        yield
    finally:
        sys.argv = words
        for known, before in ((CALLED, names), (os.environ, environment)):
            known.clear()
            known.update(before)


def options_of(name: str) -> dict[str, tuple[str, ...]]:
    """`options_in` of a command."""
    said = io.StringIO()
    with left_as_it_was(), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        os.environ["COLUMNS"] = WIDTH
        start(name, COMMANDS[name], ["--help"])
    found = options_in(said.getvalue().rsplit("\nexample:", 1)[0])
    if COMMANDS[name].of_a_run:
        launchers = WITH_VALUE | FLAGS | {"--dry-run"}
        found = {option: choices for option, choices in options_of("train").items() if option not in launchers} | found
    return found


def words_after() -> dict[str, dict[str, str]]:
    """{words so far: {next word: what it does}}."""
    found: dict[str, dict[str, str]] = {}
    for name, command in COMMANDS.items():
        words = name.split()
        for place, word in enumerate(words):
            whole = place == len(words) - 1
            says = command.says if whole else ROOMS.get(word, "")
            inner = found.setdefault(" ".join(words[:place]), {})
            if whole or word not in inner:
                inner[word] = says
    return found


def bash(after: dict[str, dict[str, str]], options: dict[str, dict[str, tuple[str, ...]]]) -> str:
    """For bash; what it does not know it leaves to the completion of file names."""
    names = "\n".join(f"    {shlex.quote(so_far)}) next={shlex.quote(' '.join(words))} ;;" for so_far, words in after.items())
    known = "\n".join(f"    {shlex.quote(name)}) options={shlex.quote(' '.join(found))} ;;" for name, found in options.items())
    values = "\n".join(
        f"    {shlex.quote(f'{name} {option}')}) next={shlex.quote(' '.join(choices))} ;;"
        for name, found in options.items()
        for option, choices in found.items()
        if choices
    )
    return f"""\
# sycoca, for bash: written by `sycoca completion bash`
_sycoca() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" so_far="" next="" options="" place=1 word option=""
  COMPREPLY=()
  while [ "$place" -lt "$COMP_CWORD" ]; do
    word="${{COMP_WORDS[$place]}}"
    [ "$word" = -- ] && return
    case " $(_sycoca_next "$so_far") " in
      *" $word "*) [ -z "$option" ] && so_far="${{so_far:+$so_far }}$word" ;;
    esac
    case "$word" in -*) option="$word" ;; esac
    place=$((place + 1))
  done
  case "$so_far" in
{known}
  esac
  [ -z "$option" ] && next="$(_sycoca_next "$so_far")"
  case "$so_far $option" in
{values}
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$options --help" -- "$current")) ;;
    *) COMPREPLY=($(compgen -W "$next" -- "$current")) ;;
  esac
}}
_sycoca_next() {{
  local next=""
  case "$1" in
{names}
  esac
  printf %s "$next"
}}
complete -o bashdefault -o default -F _sycoca sycoca
"""


def zsh(after: dict[str, dict[str, str]], options: dict[str, dict[str, tuple[str, ...]]]) -> str:
    """For zsh; what it does not know it leaves to the completion of file names."""

    def described(word: str, says: str) -> str:
        return shlex.quote(f"{word}:{says}")

    names = "\n".join(
        f"    {shlex.quote(so_far)}) next=({' '.join(described(*item) for item in words.items())}) ;;"
        for so_far, words in after.items()
    )
    known = "\n".join(f"    {shlex.quote(name)}) options=({' '.join(found)}) ;;" for name, found in options.items())
    values = "\n".join(
        f"    {shlex.quote(f'{name} {option}')}) compadd -- {' '.join(map(shlex.quote, choices))}; return ;;"
        for name, found in options.items()
        for option, choices in found.items()
        if choices
    )
    return f"""\
#compdef sycoca
# sycoca, for zsh: written by `sycoca completion zsh`
_sycoca() {{
  local so_far="" option="" word place
  local -a next options
  for (( place = 2; place < CURRENT; place++ )); do
    word="${{words[place]}}"
    [[ "$word" == -- ]] && {{ _files; return }}
    _sycoca_next "$so_far"
    [[ -z "$option" && " ${{next[@]%%:*}} " == *" $word "* ]] && so_far="${{so_far:+$so_far }}$word"
    [[ "$word" == -* ]] && option="$word"
  done
  case "$so_far" in
{known}
  esac
  if [[ "${{words[CURRENT]}}" == -* ]]; then
    compadd -- $options --help
    return
  fi
  case "$so_far $option" in
{values}
  esac
  next=()
  [[ -z "$option" ]] && _sycoca_next "$so_far"
  if (( ${{#next}} )); then _describe command next; else _files; fi
}}
_sycoca_next() {{
  next=()
  case "$1" in
{names}
  esac
}}
if [[ "${{funcstack[1]}}" == _sycoca ]]; then _sycoca "$@"; else compdef _sycoca sycoca; fi
"""


def fish(after: dict[str, dict[str, str]], options: dict[str, dict[str, tuple[str, ...]]]) -> str:
    """For fish; file names stay beside what it knows."""
    lines = [
        "# sycoca, for fish: written by `sycoca completion fish`",
        "function __sycoca_at",
        "  set -l words (commandline -opc)[2..-1]",
        "  set -l plain",
        "  for word in $words",
        "    string match -q -- '-*' $word; and break",
        "    set plain $plain $word",
        "  end",
        '  set -l so_far (string join " " -- $plain)',
        '  test "$so_far" = "$argv[1]"; or string match -q -- "$argv[1] *" "$so_far"',
        "end",
        "function __sycoca_next",
        "  set -l words (commandline -opc)[2..-1]",
        '  set -l so_far (string join " " -- $words)',
        '  test "$so_far" = "$argv[1]"',
        "end",
    ]
    for so_far, words in after.items():
        for word, says in words.items():
            condition = shlex.quote(f"__sycoca_next {shlex.quote(so_far)}")
            lines.append(f"complete -c sycoca -f -n {condition} -a {shlex.quote(word)} -d {shlex.quote(says)}")
    for name, found in options.items():
        condition = shlex.quote(f"__sycoca_at {shlex.quote(name)}")
        for option, choices in found.items():
            value = f" -a {shlex.quote(' '.join(choices))}"
            if option == PLAIN:
                lines.append(f"complete -c sycoca -f -n {condition}{value}")
            else:
                lines.append(f"complete -c sycoca -n {condition} -l {option[2:]}" + (f" -x{value}" if choices else ""))
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def main() -> int:
    options = parse_command(CompletionOptions, sys.argv[1:], PROGRAM)
    known = {name: options_of(name) for name in COMMANDS}
    print(SHELLS[options.shell](words_after(), known), end="")
    return 0
