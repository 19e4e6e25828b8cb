"""The peers: open_clip 3.3.0 as installed by `make peer`, and its main branch where a checkout is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.frame import Turn, stalled_share, waited

REPOSITORY = Path(__file__).resolve().parents[1]


class PeerProcess:
    """A version of open_clip that waits while others are measured."""

    def __init__(self, name: str, folders: list[Path]) -> None:
        self.name, self.folders = name, folders
        path = os.pathsep.join([*(str(folder.resolve()) for folder in folders), str(REPOSITORY)])
        command = [sys.executable, str(REPOSITORY / "benchmarks/peer_process.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True
        )

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """Raises RuntimeError with what the peer said of an error, or that it has ended."""
        self.process.stdin.write(json.dumps({"do": what, **request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def turn(self, results: list[Any] | None = None) -> Callable[[], Turn]:
        def run() -> Turn:
            before = waited()
            answer = self.ask("measure")
            if results is not None:
                results.append(answer["result"])
            return Turn(answer["seconds"], answer["processor"], stalled_share(before, answer["seconds"]))

        return run

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def peers(installed: Path, main: Path | None) -> Iterator[dict[str, PeerProcess]]:
    """By name; none where nothing is installed. On Ctrl-C or SIGTERM they end at once, in the middle of a turn."""
    found: dict[str, PeerProcess] = {}
    try:
        if (installed / "open_clip").is_dir():
            found["open_clip 3.3"] = PeerProcess("open_clip 3.3", [installed])
            if main is not None:
                found["open_clip main"] = PeerProcess("open_clip main", [main / "src", installed])
        yield found
    except BaseException:  # nobody waits for the answer
        for peer in found.values():
            peer.process.kill()
        raise
    finally:
        for peer in found.values():
            peer.close()


def write_clip_tokenizer(open_clip: Path, out: Path) -> None:
    """tokenizer.json of CLIP's BPE, from the merges in the folder that `make peer` fills."""
    found = sorted(open_clip.rglob("bpe_simple_vocab_16e6.txt.gz"))
    if not found:
        raise SystemExit(f"{open_clip}: CLIP's merges come with open_clip, which is not there: run `make peer`")
    command = [sys.executable, "-m", "data_pipeline", "tokenizer", "import-clip", "--merges", str(found[0].resolve())]
    subprocess.run([*command, "--out", str(out.resolve())], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
