"""`python -m sycoca_ds.launch files`: the templates of a launch, which an installed package keeps inside, in a folder to edit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import write_bytes
from sycoca_ds.launch.processes import REPOSITORY

SHIPPED = (REPOSITORY / "sycoca_ds/hostfiles", REPOSITORY / "data_pipeline/jobs")


@dataclass(frozen=True)
class FilesCommand:
    """Writes the templates of a launch into a folder: a hostfile, variables for every rank (.deepspeed_env), a training under
    Slurm, and the jobs that download a catalogue under Slurm and on Spark."""

    out: Path
    """Folder to write into; a file that is there with other content is left as it is, which is an error."""

    def run(self) -> int:
        files = [
            path for folder in SHIPPED for path in sorted(folder.iterdir()) if path.suffix not in (".md", ".pyc") and path.is_file()
        ]
        edited = [path.name for path in files if differs(self.out / path.name, path)]
        if edited:
            raise UserError(f"--out {self.out}: holds {', '.join(edited)} with other content (edited?): choose another folder")
        for path in files:
            write_bytes(self.out / path.name, path.read_bytes())
            (self.out / path.name).chmod(path.stat().st_mode & 0o777)
        print("\n".join(str(self.out / path.name) for path in files))
        return 0


def differs(there: Path, shipped: Path) -> bool:
    """Whether a file is there that is another one."""
    return there.exists() and there.read_bytes() != shipped.read_bytes()
