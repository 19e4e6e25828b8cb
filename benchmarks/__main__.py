"""Our speed beside the peers', in one run: `make bench`, or

    python -m benchmarks                          # everything, some minutes on two cores
    python -m benchmarks training --turns 9       # one part, more turns
    python -m benchmarks training --open-clip-main CHECKOUT --models coca_base --batch-sizes 64 256
    python -m benchmarks --note benchmarks/results/2026-11-27_bench_2cpu.md

training     a step of CoCa beside open_clip's, of SyCoCa beside its FLOPs, of the presets beside their matrix products
engine       the training loop beside a bare PyTorch loop
input        a loader process beside open_clip's and decoding alone
generation   captions, greedy and with 6 beams, beside open_clip's `generate`
retrieval    exact ranks of 5,000 x 25,010 beside a plain product with top-k
checkpoint   a save, its verification, opening its weights, beside plain writes and hashes
data         a download beside bare img2dataset, verification

open_clip 3.3 comes by `make peer`; without it its columns stay empty. A turn is one of ours and one of every peer, one after the
other; numbers are medians (lowest to highest) of the turns that nothing else disturbed. Where other work disturbed most of them,
processor time stands for time, and the last column says so. On a GPU, whose memory they would have to share, one does all its turns
before the next one starts.

A number that is more than a tenth below what the last note of this kind of machine has, or, where none has it, the last run in
--out, is named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.parts import PARTS

NOTES = Path(__file__).with_name("results")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="NAME", help=f"default all: {', '.join(PARTS)}")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one turn, smaller batches: does it run?")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of ours and of the peer, on a CPU")
    parser.add_argument(
        "--models", nargs="+", help="CoCas of the training part; default coca_ViT-B-32, on a GPU coca_base coca_ViT-L-14"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="of training and generation")
    parser.add_argument("--captions", type=Path, help="CSV with a column `caption`: the lengths of real captions")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs for input and data; default drawn ones")
    parser.add_argument("--open-clip", type=Path, default=Path("build/open_clip"), help="folder that `make peer` fills")
    parser.add_argument("--open-clip-main", type=Path, help="checkout of open_clip's main branch, measured at its best flags")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON files")
    parser.add_argument("--note", type=Path, help="also writes the table as a dated note, and its JSON beside it")
    options = parser.parse_args(words)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: expected {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    if options.quick:
        options.turns = 1
    return options


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch, and for every process that is started

    import torch

    from benchmarks.frame import HEAD, earlier, fallen, lines, machine
    from benchmarks.peers import peers

    torch.set_num_threads(options.threads)

    signal.signal(signal.SIGTERM, end_once)  # peers are processes of their own: they are ended, too
    options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts, began, rows = machine(options.device), time.monotonic(), []
    name = f"{datetime.now(timezone.utc):%Y-%m-%d_%H%M%S}_{facts['kind']}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    before = earlier(options.out, NOTES, facts, name)
    record: dict[str, Any] = {"machine": facts, "command": " ".join(sys.argv[1:]), "quick": options.quick}
    record |= {"rows": rows, "failed": {}}
    print(f"{described(facts)}\n\n" + "\n".join(HEAD), flush=True)
    with peers(options.open_clip, options.open_clip_main) as found:
        record["peers"] = {peer: process.ask("version") for peer, process in found.items()}
        for peer, said in record["peers"].items():
            if options.device.type == "cpu" and said["threads"] != options.threads:
                sys.exit(f"{peer} has {said['threads']} threads, ours {options.threads}: that is no comparison")
        for part in options.parts:
            torch.set_num_threads(options.threads)
            try:
                for row in importlib.import_module(f"benchmarks.parts.{PARTS[part]}").measure(options, found):
                    rows.append(row.facts())
                    print("\n".join(lines(rows[-1])), flush=True)
                    (options.out / name).write_text(json.dumps(record, indent=1) + "\n")
            except (Exception, SystemExit) as error:  # the other parts still say something
                record["failed"][part] = f"{type(error).__name__}: {error}"
                print(f"| {part} | failed: {error} | | | | | |", flush=True)
    record["seconds"], record["fallen"] = time.monotonic() - began, fallen(rows, before)
    (options.out / name).write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{record['seconds'] / 60:.0f} minutes; {options.out / name}")
    print("\n".join(f"slower than before: {line}" for line in record["fallen"]))
    if options.note is not None:
        options.note.write_text(note(record))
        options.note.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return 1 if record["failed"] else 0


def end_once(number: int, frame: object) -> None:
    """As a Ctrl-C. `timeout` sends SIGTERM twice, and the second one would interrupt the ending of processes below this one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def described(facts: dict[str, Any]) -> str:
    where = facts["gpu"] or f"{facts['cores']} cores of {facts['cpu']} ({facts['capability']}), {facts['threads']} threads"
    where += f", {facts['memory_gib']} GiB; load {facts['load']} at the start"
    software = f"torch {facts['torch']}, deepspeed {facts['deepspeed']}, Python {facts['python']}"
    return f"{where}; {software}, commit {(facts['commit'] or '')[:12]}"


def note(record: dict[str, Any]) -> str:
    from benchmarks.frame import HEAD, lines

    peer = ", ".join(f"{name}: {facts['version']}" for name, facts in record["peers"].items())
    took = f"{record['seconds'] / 60:.0f} minutes"
    text = [f"# Our speed beside the peers', {datetime.now(timezone.utc):%Y-%m-%d}", ""]
    text += [f"Hardware: {described(record['machine'])}."]
    text += [f"Peers: {peer or 'none installed'}. Command: `python -m benchmarks {record['command']}`, {took}.", ""]
    text += ["Medians (lowest to highest) of turns; how many of them other work left alone stands in the last column.", "", *HEAD]
    text += [line for row in record["rows"] for line in lines(row)]
    text += [f"\nFailed: {part}: {error}" for part, error in record["failed"].items()]
    text += [f"\nSlower than before: {line}" for line in record["fallen"]]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nended: the rows above are kept in --out")
