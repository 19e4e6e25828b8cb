"""`python -m data_pipeline COMMAND`: every stage from a catalogue to verified shards.

Each command imports only what it needs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from data_pipeline.command_line import called, no_such_command, parse_command
from data_pipeline.errors import leaves, run_command

PROGRAM = "python -m data_pipeline"
COMMANDS = {
    "scenes": ("data_pipeline.world.command", "ScenesCommand", "draw a world of scenes and serve it on loopback"),
    "folder": ("data_pipeline.world.folder", "FolderCommand", "catalogue and serve a folder of your own photographs"),
    "curate": ("data_pipeline.catalogue.curate", "CurateCommand", "catalogue -> filtered, clean, distinct rows"),
    "download": ("data_pipeline.download.job", "DownloadCommand", "rows -> tars, by img2dataset under supervision"),
    "split": ("data_pipeline.parts", "SplitCommand", "rows -> a folder a part, for a job each on a cluster"),
    "merge": ("data_pipeline.parts", "MergeCommand", "verified parts -> one manifest"),
    "adopt": ("data_pipeline.build", "AdoptCommand", "tars of a ready-made mirror -> a data set folder, without a download"),
    "verify": ("data_pipeline.shards.verify", "VerifyCommand", "open and decode everything, write the manifest"),
    "mark": ("data_pipeline.shards.command", "MarkCommand", "leave out near duplicates and what evaluation sets hold"),
    "tokenizer train": ("data_pipeline.tokenizer.bpe", "TrainTokenizerCommand", "train a BPE on the kept captions"),
    "tokenizer import-clip": ("data_pipeline.tokenizer.clip_bpe", "ImportClipCommand", "CLIP's BPE, with open_clip's ids"),
    "report": ("data_pipeline.report.command", "ReportCommand", "the funnel, as JSON and as a page"),
    "build": ("data_pipeline.build", "BuildCommand", "curate, download, verify, report: one data set folder"),
}
KEPT = {
    "curate": "nothing of this curation",
    "download": "all finished tars",
    "build": "all finished tars",
    "verify": "the index of every tar that was finished",
    "mark": "the tars as they are; no training begins until the command has ended",
    "tokenizer train": "nothing",
}
"""What Ctrl-C leaves of a command."""
HELP = (
    f"usage: {PROGRAM} COMMAND [OPTIONS]\n\nFrom a catalogue of URLs and captions to verified shards.\n\ncommands:\n"
    + "".join(f"  {name:<23}{text}\n" for name, (_, _, text) in COMMANDS.items())
    + f"\nOptions of a command: {PROGRAM} COMMAND --help\n"
)


def parse(arguments: list[str]) -> Any:
    """The command's dataclass, filled. UserError on one line for anything tyro refuses; SystemExit(0) after --help."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.replace(PROGRAM, called(PROGRAM)), end="")
        raise SystemExit(0 if arguments else 2)
    words = next((count for count in (2, 1) if " ".join(arguments[:count]) in COMMANDS), 0)
    command = " ".join(arguments[:words])
    if not command:
        raise no_such_command(arguments, COMMANDS, PROGRAM)
    import importlib

    import tyro

    leaves(KEPT.get(command, ""))
    module, name, _ = COMMANDS[command]
    kind = getattr(importlib.import_module(module), name)
    # Lists take several values after one flag; a flag given again adds to it.
    return parse_command(Annotated[kind, tyro.conf.OmitArgPrefixes], arguments[words:], f"{PROGRAM} {command}")


def main() -> int:
    return parse(sys.argv[1:]).run()


if __name__ == "__main__":
    sys.exit(run_command(main))
