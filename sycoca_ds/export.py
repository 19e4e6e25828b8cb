"""Weights out of a run, for this project or for open_clip; and open_clip's weights in.

    python sycoca_ds/export.py --checkpoint runs/930m --out exported/930m
    python sycoca_ds/export.py --checkpoint runs/coca_base --layout open_clip --out exported/for_open_clip
    python sycoca_ds/export.py --from-open-clip open_clip_model.safetensors --model coca_ViT-L-14 --tokenizer clip.json \\
        --out exported/coca_l14

docs/open_clip.md says what the two have in common and what differs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0] or os.getcwd()).resolve() == ROOT / "sycoca_ds":
    # launched by path: this folder would shadow installed modules (`data`, `model`), and `sycoca_ds` would not be found
    sys.path[0] = str(ROOT)

from data_pipeline.errors import UserError, run_command  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from sycoca_ds.config import ModelConfig, TextEncoderConfig
    from sycoca_ds.data.tokenizer import Tokenizer

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OPEN_CLIP_NAMES = (
    OPEN_CLIP_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""What open_clip calls the weights in a folder, in the order in which it looks."""
OWN_KEY = "sycoca_ds"
"""Key of open_clip_config.json under which we keep what open_clip's own keys do not say; it reads other keys only."""


@dataclass(frozen=True)
class ExportConfig:
    """Writes a model's weights into a new folder. Give --checkpoint or --from-open-clip."""

    out: str
    """Folder to write; must not exist or be empty."""
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
    """`sycoca`: for evaluate.py --checkpoint and for starting a run from it; `open_clip`: for
    open_clip.create_model("local-dir:OUT")."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the written weights; computations here are in float32 either way."""
    ema: bool = False
    """Take the moving average of the checkpoint's weights, of a run with --optim.ema-decay, instead of the weights."""


@dataclass(frozen=True)
class Source:
    """Weights to be written, and what is known of them."""

    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Path | None
    facts: dict[str, Any]
    """kind, path, step, samples, digest; of a checkpoint also ema_decay."""


# ---- reading open_clip's files -------------------------------------------------------------------------------------------------


def find_open_clip(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """(file with the weights, content of open_clip_config.json beside it or None) of a file or folder.

    Raises:
        UserError: nothing there, or several files and none with a name that open_clip knows.
    """
    from sycoca_ds.options import read_json_object

    if path.is_file():
        return path, None
    if not path.is_dir():
        raise UserError(f"--from-open-clip {path} does not exist: give a file of weights, or a folder with {OPEN_CLIP_CONFIG}")
    config = read_json_object(path / OPEN_CLIP_CONFIG, "--from-open-clip") if (path / OPEN_CLIP_CONFIG).is_file() else None
    for name in OPEN_CLIP_NAMES:
        if (path / name).is_file():
            return path / name, config
    found = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no file of weights"
        raise UserError(f"--from-open-clip {path}: found {names}, expected {OPEN_CLIP_WEIGHTS} or one such file: name the file")
    return found[0], config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """open_clip's state dict from a file: the wrappers of its training checkpoints ("state_dict", "module.", ...) taken off.

    Raises:
        UserError: not readable, or it holds more than tensors: pickles of strangers are not executed.
    """
    import torch
    from safetensors.torch import load_file

    from sycoca_ds.model.shapes import unwrapped

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # SafetensorError, UnpicklingError, and whatever a damaged or hostile file provokes
        reason = (str(error) or "the file is empty or ends too early").splitlines()[0]
        raise UserError(
            f"--from-open-clip {path} cannot be read as tensors ({type(error).__name__}: {reason}): it is "
            "damaged, or a pickle of more than tensors, which would run code of its maker; convert such a file to safetensors "
            "where you trust it"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    named = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    if not named or not state:
        raise UserError(f"--from-open-clip {path}: expected tensors by name, or a training checkpoint with them in state_dict")
    state = unwrapped(state, f"--from-open-clip {path}")
    if "logit_scale" in state and state["logit_scale"].shape == (1,):
        state["logit_scale"] = state["logit_scale"].reshape(())  # open_clip has models of both shapes and loads either
    return state


def preprocessing(image_size: int) -> dict[str, Any]:
    """How sycoca_ds/data/transforms.py prepares an image for evaluation, as open_clip's `preprocess_cfg` says it."""
    from sycoca_ds.model.pixels import IMAGE_MEAN, IMAGE_STD

    shown = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
    return {"size": image_size, "mean": list(IMAGE_MEAN), "std": list(IMAGE_STD), **shown}


def check_preprocessing(values: Mapping[str, Any], image_size: int, where: str) -> None:
    """Raises `UserError` if a model expects images to be prepared in another way than ours are."""
    given = section(values, "preprocess_cfg", where)
    for key, ours in preprocessing(image_size).items():
        found = given.get(key)
        same = (ours, [ours, ours], [3, ours, ours]) if key == "size" else (ours,)
        if found is not None and found not in same:
            raise UserError(f"{where}: preprocess_cfg.{key} = {found}: this project prepares all images with {ours} there")


def section(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """The object under a key of open_clip's JSON, empty if it is absent. Raises `UserError` if something else stands there."""
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: {key} = {found!r}: expected an object")
    return found


def described(values: Mapping[str, Any], where: str, tokenizer: Tokenizer | None) -> ModelConfig:
    """The model that open_clip's JSON describes; what it does not say comes from our own key in it, or from the tokenizer."""
    from sycoca_ds.config import TextEncoderConfig
    from sycoca_ds.model.open_clip.config import CLIP_EOT_ID, CLIP_SOT_ID, config_from_open_clip
    from sycoca_ds.options import from_dict

    own = {key: section(values, OWN_KEY, where).get(key) for key in ("sot_id", "eot_id", "attention_mask")}
    usual = TextEncoderConfig(sot_id=CLIP_SOT_ID, eot_id=CLIP_EOT_ID, attention_mask="open_clip")
    text = from_dict(TextEncoderConfig, {key: value for key, value in own.items() if value is not None}, where, usual)
    ids = tokenizer or text
    model = config_from_open_clip(values.get("model_cfg", values), ids.sot_id, ids.eot_id, text.attention_mask)
    check_preprocessing(values, model.image.image_size, where)
    return model


def open_clip_source(config: ExportConfig) -> Source:
    """open_clip's weights under our names."""
    from data_pipeline.command_line import nearest
    from data_pipeline.files import sha256_file
    from sycoca_ds.data.tokenizer import Tokenizer
    from sycoca_ds.model.open_clip.config import open_clip_config
    from sycoca_ds.model.open_clip.weights import from_open_clip
    from sycoca_ds.options import read_json_object
    from sycoca_ds.presets import PRESETS

    path = Path(config.from_open_clip)
    file, beside = find_open_clip(path)
    tokenizer = Path(config.tokenizer) if config.tokenizer else None
    if tokenizer is None and (path / "tokenizer.json").is_file() and OWN_KEY in (beside or {}):
        tokenizer = path / "tokenizer.json"  # this command wrote it; other people's may be of another kind
    known = Tokenizer(tokenizer) if tokenizer else None

    model = None if beside is None else described(beside, str(path / OPEN_CLIP_CONFIG), known)
    if config.model is None and model is None:
        raise UserError(f"--from-open-clip {path}: say with --model which model it is, or give a folder with {OPEN_CLIP_CONFIG}")
    if config.model is not None:
        named = config.model
        if named.endswith(".json"):
            wanted = described(read_json_object(Path(named), "--model"), named, known)
        elif named in PRESETS:
            wanted = PRESETS[named].model
            if known:
                wanted = replace(wanted, text=replace(wanted.text, sot_id=known.sot_id, eot_id=known.eot_id))
        else:
            names = [name for name, preset in PRESETS.items() if preset.model.family == "coca"]
            raise UserError(
                f"--model {named}: no such preset{nearest(named, names)} (expected one of {', '.join(names)}, or a .json file)"
            )
        if model is not None and open_clip_config(wanted) != open_clip_config(model):
            raise UserError(f"--model {named} is not what {path / OPEN_CLIP_CONFIG} describes: leave --model out")
        model = wanted
    weights = from_open_clip(read_tensors(file), model)
    facts = {"kind": "open_clip", "path": config.from_open_clip, "step": None, "samples": None, "digest": sha256_file(file)}
    return Source(model, weights, tokenizer, facts)


# ---- our own -------------------------------------------------------------------------------------------------------------------


def checkpoint_source(config: ExportConfig) -> Source:
    """A run's checkpoint, or a folder written before."""
    from sycoca_ds.engine.checkpoint.weights import open_weights

    if config.model is not None:
        raise UserError("--model says what open_clip's weights are; a checkpoint knows its model: leave it out")
    stored = open_weights(config.checkpoint, ema=config.ema)
    tokenizer = Path(config.tokenizer) if config.tokenizer else stored.tokenizer
    facts = {
        "kind": "exported" if "kind" in stored.state else "checkpoint",
        "path": config.checkpoint,
        "step": stored.state["step"],
        "samples": stored.state["samples"],
        "digest": stored.digest,
        "ema_decay": stored.ema_decay,
    }
    return Source(stored.config.model, stored.weights, tokenizer, facts)


def check_tokenizer(path: Path, model: ModelConfig) -> None:
    """Raises `UserError` if a tokenizer is not the one of these weights."""
    from sycoca_ds.data.tokenizer import Tokenizer

    tokenizer, text = Tokenizer(path), model.text
    if tokenizer.vocab_size > text.vocab_size or (tokenizer.sot_id, tokenizer.eot_id) != (text.sot_id, text.eot_id):
        raise UserError(
            f"tokenizer {path} has {tokenizer.vocab_size} entries and special ids {tokenizer.sot_id} and {tokenizer.eot_id}; the "
            f"weights are for at most {text.vocab_size}, {text.sot_id} and {text.eot_id}: give the tokenizer they were trained with"
        )


# ---- writing -------------------------------------------------------------------------------------------------------------------


def write_open_clip(folder: Path, source: Source, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Fills a new folder as open_clip reads it; `weights` have open_clip's names. Returns facts about the weights' file."""
    from sycoca_ds.engine.checkpoint.exported import copy_tokenizer, save_tensors
    from sycoca_ds.model.open_clip.config import open_clip_config, uses_clips_ids

    text, model = source.config.text, open_clip_config(source.config)
    facts = save_tensors(weights, folder / OPEN_CLIP_WEIGHTS)
    tokenizer = copy_tokenizer(source.tokenizer, folder)
    if tokenizer is not None and not uses_clips_ids(source.config):
        tokenizer |= describe_tokenizer(folder / tokenizer["file"], text)
        # any name makes open_clip look into the folder; without one it silently takes CLIP's BPE
        model["text_cfg"]["hf_tokenizer_name"] = tokenizer["file"]
    record = {
        "model_cfg": model,
        "preprocess_cfg": preprocessing(source.config.image.image_size),
        OWN_KEY: {
            "sot_id": text.sot_id,
            "eot_id": text.eot_id,
            "attention_mask": text.attention_mask,
            "source": source.facts,
            "weights": facts,
            "tokenizer": tokenizer,
        },
    }
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(record, indent=2) + "\n")
    return facts


def describe_tokenizer(path: Path, text: TextEncoderConfig) -> dict[str, str]:
    """Lets transformers' AutoTokenizer, and through it open_clip, make the ids that ours makes; the file's sha256."""
    from tokenizers import Tokenizer as Bpe
    from tokenizers.processors import TemplateProcessing

    from data_pipeline.files import sha256_file
    from sycoca_ds.model.text_encoder import PAD_ID

    names = {"bos_token": "<start_of_text>", "eos_token": "<end_of_text>"}
    bpe = Bpe.from_file(str(path))
    bpe.post_processor = TemplateProcessing(
        single="{bos_token} $A {eos_token}".format(**names),
        special_tokens=[(names["bos_token"], text.sot_id), (names["eos_token"], text.eot_id)],
    )
    bpe.save(str(path))
    record = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "pad_token": bpe.id_to_token(PAD_ID),
        "model_max_length": text.context_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a special token's letters in a caption are letters, as `data.tokenizer` reads them
    }
    (path.parent / "tokenizer_config.json").write_text(json.dumps(record, indent=2) + "\n")
    return {"sha256": sha256_file(path)}


def export(config: ExportConfig) -> int:
    """Reads, converts, writes; prints what was written and what a user must know."""
    from sycoca_ds.engine.checkpoint.exported import cast, check_free, new_folder, write_exported
    from sycoca_ds.model.open_clip.config import what_changes
    from sycoca_ds.model.open_clip.weights import to_open_clip

    out = Path(config.out)
    if (config.checkpoint is None) == (config.from_open_clip is None):
        raise UserError("give one of --checkpoint (a run of this project) and --from-open-clip (open_clip's weights)")
    if config.ema and config.checkpoint is None:
        raise UserError("--ema: open_clip's weights have no average beside them: leave it out")
    check_free(out)
    source = open_clip_source(config) if config.checkpoint is None else checkpoint_source(config)
    if source.tokenizer is not None:
        check_tokenizer(source.tokenizer, source.config)
    weights = cast(source.weights, config.dtype)
    said = []
    if source.tokenizer is None and config.layout == "sycoca":
        said = ["no tokenizer.json is beside the weights: what needs captions will refuse; give it with --tokenizer"]
    if config.layout == "open_clip":
        weights, said = to_open_clip(weights, source.config), what_changes(source.config, source.tokenizer is not None)
    with new_folder(out) as folder:
        if config.layout == "open_clip":
            facts = write_open_clip(folder, source, weights)
        else:
            facts = write_exported(folder, source.config, weights, source.tokenizer, source.facts)["weights"]
    step = "" if source.facts["step"] is None else f", step {source.facts['step']}"
    step += "" if source.facts.get("ema_decay") is None else ", average of its weights"
    print(
        f"{out}: {source.config.family}{step}, {facts['parameters'] / 1e6:.1f} M parameters in {facts['dtype']}, "
        f"{facts['bytes'] / 1e6:.1f} MB, sha256 {facts['sha256'][:12]}"
    )
    for sentence in said:
        print(f"NOTE: {sentence}", file=sys.stderr, flush=True)
    return 0


def parse(words: list[str]) -> ExportConfig:
    from data_pipeline.command_line import parse_command

    return parse_command(ExportConfig, words, "sycoca_ds/export.py", description=__doc__)


def main() -> int:
    return run_command(lambda: export(parse(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
