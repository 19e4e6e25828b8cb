"""The options of `sycoca_ds/export.py`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data_pipeline.errors import UserError

Form = Literal["safetensors", "open_clip", "hf-folder"]


@dataclass(frozen=True)
class ExportConfig:
    """Writes a model's weights into a new folder, with tokenizer and model card, and compares what was written with the model
    before it says done. Give RUN (or --checkpoint), or --from-open-clip."""

    run: Annotated[str | None, tyro.conf.Positional] = None
    """What --checkpoint takes."""
    to: Form | None = None
    """safetensors: for this project; open_clip: for open_clip's own commands; hf-folder: for a hub of models, with what
    transformers' AutoTokenizer needs. Default: what --layout says."""
    out: str | None = None
    """Folder to write; must not exist or be empty. Default: exported/NAME_TO, by the names of run and form."""
    checkpoint: str | None = None
    """Run folder (its newest whole checkpoint), one step's folder, or a folder that this command wrote."""
    from_open_clip: str | None = None
    """open_clip's weights: a .safetensors, .pt or .bin file, or a folder with open_clip_config.json."""
    model: str | None = None
    """Which model open_clip's weights are of: a preset such as coca_ViT-L-14, or open_clip's JSON of it. A folder's own
    open_clip_config.json is the default."""
    tokenizer: str | None = None
    """tokenizer.json to put beside the weights; default: the checkpoint's. For open_clip's weights: what
    `python -m data_pipeline tokenizer import-clip` makes of CLIP's BPE."""
    layout: Literal["sycoca", "open_clip"] = "sycoca"
    """`sycoca`: what --to safetensors is; `open_clip`: what --to open_clip is."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the written weights; computations here are in float32 either way."""
    ema: bool = False
    """Take the moving average of the checkpoint's weights, of a run with --optim.ema-decay, instead of the weights."""
    license: str | None = None
    """Licence of the weights for the model card, as model hubs abbreviate it (apache-2.0, cc-by-nc-4.0, ...); not given: the card
    says that none is stated."""
    data_license: str | None = None
    """What the card says of the licence of pictures and captions; not given: that it is not stated."""
    dry_run: bool = False
    """Open and check the weights, and say what would be written where; write nothing."""

    @property
    def form(self) -> Form:
        """Raises `UserError` where --to and --layout say different things."""
        named: Form = "open_clip" if self.layout == "open_clip" else "safetensors"
        if self.to is not None and self.layout == "open_clip" != self.to:
            raise UserError(f"--to {self.to} and --layout open_clip: expected one of them")
        return self.to or named

    @property
    def source(self) -> str | None:
        """The checkpoint. Raises `UserError`: named twice."""
        if self.run is not None and self.checkpoint is not None:
            raise UserError(f"{self.run} and --checkpoint {self.checkpoint}: expected one of them")
        return self.run or self.checkpoint

    @property
    def folder(self) -> Path:
        """Where it goes."""
        if self.out is not None:
            return Path(self.out)
        source = self.source or self.from_open_clip or "model"
        step = f"_{Path(source).name}" if is_step(source) else ""
        return Path("exported") / f"{name_of(source)}{step}_{self.form}"


def is_step(path: str) -> bool:
    """Whether it is one step's folder of a run."""
    return os.path.basename(os.path.dirname(os.path.abspath(path))) == "checkpoints"


def name_of(path: str) -> str:
    """What weights are called: by the run of a step's folder, by another folder's own name, by a file's without its ending."""
    place = Path(os.path.abspath(path))
    if is_step(path):
        return place.parents[1].name
    return place.stem if place.is_file() else place.name
