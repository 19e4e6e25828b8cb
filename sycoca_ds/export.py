"""Weights out of a run, for this project or for open_clip; and open_clip's weights in.

    python sycoca_ds/export.py runs/930m --to safetensors --out exported/930m
    python sycoca_ds/export.py runs/930m --to hf-folder --license cc-by-4.0 --out exported/for_a_hub
    python sycoca_ds/export.py runs/coca_base --to open_clip --out exported/for_open_clip
    python sycoca_ds/export.py --from-open-clip open_clip_model.safetensors --model coca_ViT-L-14 --tokenizer clip.json \\
        --out exported/coca_l14

docs/open_clip.md says what the two have in common and what differs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0] or os.getcwd()).resolve() == ROOT / "sycoca_ds":
    # launched by path: this folder would shadow installed modules (`data`, `model`), and `sycoca_ds` would not be found; nor may
    # the folder of all packages go before Python's own
    sys.path[:1] = [] if ROOT.name in ("site-packages", "dist-packages") else [str(ROOT)]

from data_pipeline.errors import UserError, leaves, run_command  # noqa: E402
from sycoca_ds.exporting import KEPT  # noqa: E402

if TYPE_CHECKING:
    from sycoca_ds.exporting.options import ExportConfig


def export(config: ExportConfig) -> int:
    """Reads, converts, writes, compares; prints what was written and what a user must know."""
    from sycoca_ds.engine.checkpoint.exported import cast, check_free, new_folder, write_exported
    from sycoca_ds.exporting.card import write_card
    from sycoca_ds.exporting.open_clip_folder import add_hub_files, write_open_clip
    from sycoca_ds.exporting.proof import prove
    from sycoca_ds.exporting.source import check_tokenizer, checkpoint_source, open_clip_source
    from sycoca_ds.model.open_clip.config import what_changes
    from sycoca_ds.model.open_clip.weights import to_open_clip

    form, out = config.form, config.folder
    if (config.source is None) == (config.from_open_clip is None):
        raise UserError("give one of RUN or --checkpoint (a run of this project) and --from-open-clip (open_clip's weights)")
    if config.ema and config.source is None:
        raise UserError("--ema: open_clip's weights have no average beside them: leave it out")
    check_free(out)
    source = open_clip_source(config) if config.source is None else checkpoint_source(config)
    if source.tokenizer is not None:
        check_tokenizer(source.tokenizer, source.config)
    weights = cast(source.weights, config.dtype)
    said = []
    if source.tokenizer is None and form != "open_clip":
        said = ["no tokenizer.json is beside the weights: what needs captions will refuse; give it with --tokenizer"]
    if form == "open_clip":
        theirs, said = to_open_clip(weights, source.config), what_changes(source.config, source.tokenizer is not None)
    step = "" if source.facts["step"] is None else f", step {source.facts['step']}"
    step += "" if source.facts.get("ema_decay") is None else ", average of its weights"
    if config.dry_run:
        count, size = sum(x.numel() for x in weights.values()), sum(x.numel() * x.element_size() for x in weights.values())
        print(
            f"{out}: would be {source.config.family}{step}, {count / 1e6:.1f} M parameters in {config.dtype}, {size / 1e6:.1f} MB, "
            f"as {form}"
        )
        return tell(said)
    with new_folder(out) as folder:
        if form == "open_clip":
            facts = write_open_clip(folder, source, theirs)
        else:
            facts = write_exported(folder, source.config, weights, source.tokenizer, source.facts)["weights"]
            if form == "hf-folder":
                add_hub_files(folder, source.config)
        write_card(folder, form, source, facts, said, config.license, config.data_license)
        proof = prove(folder, form, source, weights)
    print(
        f"{out}: {source.config.family}{step}, {facts['parameters'] / 1e6:.1f} M parameters in {facts['dtype']}, "
        f"{facts['bytes'] / 1e6:.1f} MB, sha256 {facts['sha256'][:12]}\n{proof}"
    )
    return tell(said)


def tell(said: list[str]) -> int:
    """What a user must know."""
    for sentence in said:
        print(f"NOTE: {sentence}", file=sys.stderr, flush=True)
    return 0


def parse(words: list[str]) -> ExportConfig:
    from data_pipeline.command_line import parse_command
    from sycoca_ds.exporting.options import ExportConfig

    return parse_command(ExportConfig, words, "sycoca_ds/export.py", description=__doc__)


def main() -> int:
    leaves(KEPT)
    return run_command(lambda: export(parse(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
