"""What is checked, one line each, written down as it comes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Check:
    section: str
    name: str
    passed: bool | None
    """None: a number that is reported, with nothing that it must reach."""
    said: str


@dataclass
class Checks:
    path: Path
    found: list[Check] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    section: str = ""

    def begin(self, section: str) -> None:
        self.section = section
        print(f"== {section}", flush=True)

    def add(self, name: str, passed: bool | None, said: str) -> None:
        self.found.append(Check(self.section, name, passed, said))
        print(f"  {mark(passed):<6} {name}: {said}", flush=True)
        self._write()

    def below(self, name: str, value: float, bound: float, more: str = "") -> None:
        """Something that must be small; a NaN is not."""
        self.add(name, value <= bound, f"{value:.2e}, at most {bound:.0e}{more}")

    def note(self, name: str, value: Any) -> None:
        self.notes[name] = value
        self._write()

    @property
    def failed(self) -> bool:
        return any(check.passed is False for check in self.found)

    def _write(self) -> None:
        self.path.write_text(json.dumps({"notes": self.notes, "checks": [asdict(check) for check in self.found]}, indent=1) + "\n")

    def table(self) -> str:
        lines = [f"| {c.section} | {c.name} | {mark(c.passed)} | {c.said} |" for c in self.found]
        return "\n".join(["", "| section | check | | found |", "|---|---|---|---|", *lines])


def mark(passed: bool | None) -> str:
    return {True: "ok", False: "FAILED", None: ""}[passed]


def describe() -> dict[str, Any]:
    """The GPU and the software, and what the GPU's matrix products reach: the yardstick beside the data sheet's."""
    import deepspeed

    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return {
        "gpus": subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "deepspeed": deepspeed.__version__,
        "measured_tflops": round(matrix_peak(), 1),
    }


def matrix_peak(size: int = 8192, turns: int = 20) -> float:
    """TFLOP/s of a bf16 product of two random square matrices, the median of `turns`."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(turns + 1)]
    for _ in range(5):
        a @ b
    for event in events:
        event.record()
        a @ b
    torch.cuda.synchronize()
    times = sorted(one.elapsed_time(other) for one, other in zip(events, events[1:], strict=False))
    return 2 * size**3 / (times[turns // 2] / 1000) / 1e12
