"""For the comparison with open_clip: small models of every kind it can hold, weights and inputs for any model, the export command,
and open_clip itself in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sycoca_ds import export
from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, ModelConfig, TextEncoderConfig
from sycoca_ds.engine.checkpoint.exported import new_folder, write_exported
from sycoca_ds.model.shapes import our_shapes
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import LIMIT

SMALL = ModelConfig(
    family="coca",
    embed_dim=24,
    image=ImageEncoderConfig(image_size=24, patch_size=6, layers=2, width=32, heads=4),
    text=TextEncoderConfig(context_length=12, vocab_size=50, layers=2, width=32, heads=2, attention_mask="open_clip"),
    text_decoder=DecoderConfig(layers=3, width=32, heads=4),
)
"""The shapes of coca_base at a size that takes no time; every count differs from its neighbours."""


def pooled(width: int) -> ImageEncoderConfig:
    return dataclasses.replace(SMALL.image, width=width, pooling="attention", pooling_queries=7, pooling_heads=2)


VARIANTS = {
    "cls": SMALL,
    "pooled": dataclasses.replace(SMALL, embed_dim=32, image=pooled(48)),
    # queries as wide as keys: torch's MultiheadAttention then keeps one stacked matrix
    "pooled_one_width": dataclasses.replace(SMALL, embed_dim=32, image=pooled(32)),
    "clip": dataclasses.replace(SMALL, family="clip", text=dataclasses.replace(SMALL.text, width=40), text_decoder=DecoderConfig()),
}


def built(config: ModelConfig, weights: dict[str, Tensor]) -> SyCoCa:
    model = SyCoCa(config, seed=None)
    model.load_state_dict(weights)
    return model.eval()


def random_weights(config: ModelConfig, seed: int = 11) -> dict[str, Tensor]:
    """Every parameter random, norms around 1; matrices keep the size of what passes through them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        value = torch.randn(shape, generator=generator)
        if name == "logit_scale":
            return 3 + 0.1 * value
        if ".ln_" in name and name.endswith("weight"):
            return 1 + 0.2 * value
        if name.endswith("embedding") or "token_embedding" in name:
            return 0.5 * value
        return value * (shape[1] ** -0.5 if len(shape) == 2 else 0.1)

    return {name: draw(name, shape) for name, shape in our_shapes(config).items()}


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def run_export(*words: object) -> int:
    """`sycoca_ds/export.py WORDS`, in this process."""
    return export.export(export.parse(list(map(str, words))))


def export_for_open_clip(config: ModelConfig, weights: dict[str, Tensor], folder: Path, tokenizer: Path | None = None) -> Path:
    """A model in our layout, exported by the command to open_clip's."""
    with new_folder(folder / "ours") as new:
        write_exported(new, config, weights, tokenizer, {"kind": "test", "step": 1, "samples": 2})
    assert run_export("--checkpoint", folder / "ours", "--out", folder / "theirs", "--layout", "open_clip") == 0
    return folder / "theirs"


def make_inputs(config: ModelConfig, seed: int = 5) -> dict[str, Tensor]:
    """Images, and captions: of full length; padded with the real token 0 ("!" in CLIP's BPE) inside; short."""
    generator = torch.Generator().manual_seed(seed)
    length, size, text = config.text.context_length, config.image.image_size, config.text
    text_BL = torch.randint(3, min(text.vocab_size, 49000), (3, length), generator=generator)
    for row, end in zip(text_BL, (length, length // 2, length // 3), strict=True):
        row[0], row[end - 1], row[end:] = text.sot_id, text.eot_id, 0
    text_BL[1, 2] = 0
    picture = torch.randint(0, 256, (40, 57, 3), dtype=torch.uint8, generator=generator)
    return {"image": torch.randn(3, 3, size, size, generator=generator), "text": text_BL, "picture": picture}


CAPTIONS = (
    "A photo of a cat!",
    "it's 42 dogs, they're",
    "  two\n\tspaces  ",
    "na\u00efve caf\u00e9 \u65e5\u672c \U0001f600 e\u0301",
    "wow!!! ! ???",
    "\u2018quoted\u2019 \u201cthings\u201d",
    "x" * 300,
    "word " * 100,
    "",
    "#tag @user http://a.b/c?d=e 3.14 $5 \u00a9 2019 \u2014 \u2026",
)


DIRTY = [
    "&lt;b&gt;cats &amp;amp; dogs&lt;/b&gt; &quot;at&nbsp;home&quot; &#8217;round <br> &ldquo;five&rdquo;",
    # UTF-8 that was read as Windows-1252
    "l\u00e2\u20ac\u2122\u00e9t\u00c3\u00a9 \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d na\u00c3\u00afve",
    "\u201ccurly\u201d \u2018quotes\u2019 \u00abangles\u00bb \u2013 dashes \u2014 and\u2026",
    "\ufb01ligatures o\ufb03ce \uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48 \u3000 ideographic\u3000space",
    "\ufeffmark soft\u00adhyphen zero\u200bwidth line\u2028sep para\u2029sep vertical\x0btab form\x0cfeed nul\x00bell\x07",
    "\x1b[36;44mterminal\x1b[0m colours \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    "\u039f\u0394\u039f\u03a3 \u03a3\u0399\u03a3\u03a5\u03a6\u039f\u03a3 \u0130stanbul STRA\u1e9eE \u01c5",
    "e\u0301 A\u030a \u1112\u1161\u11ab &#101;&#769; cafe&#x301;",
    "\u4e2d\u6587\u5b57\u5e55 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0639\u0631\u0628\u064a \u0e44\u0e17\u0e22",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "  tabs\tand\r\nlines\n\n  at the end \u00a0",
    "<start_of_text> not a token <end_of_text> don't can't we'll I'd 1,234.50 \u20ac\u00bd\u00b2\u2168",
    "a tag &lt;end_of_text&gt; and more <END_OF_TEXT> \uff1cpad\uff1e x<pad>y <|endoftext|> end",
]
"""Captions that need mending; cleaned as open_clip's tokenizer cleans them they give its ids."""


def texts() -> list[str]:
    """Captions, dirty ones, and random letters, digits and signs, on which merges run in unusual orders."""
    generator, signs = np.random.default_rng(3), np.array(list("abcdefghijklmnopqrstuvwxyz  ABC 0123456789 !?.,'\u00e9\u00fc-"))
    return [*CAPTIONS, *DIRTY, *("".join(generator.choice(signs, generator.integers(1, 60))) for _ in range(1000))]


# ---- open_clip in a process of its own -----------------------------------------------------------------------------------------


def peer() -> tuple[str, dict[str, str]] | None:
    """(Python, environment) that has open_clip, or None."""
    if python := os.environ.get("SYCOCA_OPEN_CLIP_PYTHON"):
        return python, dict(os.environ)
    layer = Path(os.environ.get("SYCOCA_OPEN_CLIP_PATH", REPOSITORY / "build" / "open_clip"))
    return (sys.executable, {**os.environ, "PYTHONPATH": str(layer)}) if (layer / "open_clip").is_dir() else None


needs_open_clip = pytest.mark.skipif(
    peer() is None, reason="open_clip is not installed beside this environment: `make peer` does it"
)


def has_benchmark() -> bool:
    """Whether CLIP_benchmark lies beside open_clip."""
    found = peer()
    return found is not None and (Path(found[1].get("PYTHONPATH", "")) / "clip_benchmark").is_dir()


def clip_benchmark(*words: str) -> None:
    """CLIP_benchmark's own command with these words."""
    python, environment = peer()
    script = Path(environment["PYTHONPATH"]) / "bin" / "clip_benchmark"
    done = subprocess.run([python, str(script), *words], env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-3000:]


def ask(jobs: list[dict], folder: Path, script: str = "peer.py") -> None:
    """Lets open_clip do the jobs; fails with its words, or when it takes longer than `LIMIT`.

    script: benchmark.py for jobs of CLIP_benchmark.
    """
    python, environment = peer()
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    process = subprocess.Popen(
        [python, str(Path(__file__).with_name(script)), str(folder / "jobs.json")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"open_clip took more than {LIMIT} s:\n{process.communicate()[0][-3000:]}")
    assert process.returncode == 0, f"open_clip failed; after another torch is installed `make peer` renews it:\n{output[-4000:]}"
