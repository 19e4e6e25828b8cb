"""Captions: ours beside open_clip's `generate` on the same weights, with as many tokens, greedy and with 6 beams.

No text ends early on either side. The limit: the products with all weights of the text side, once a token, nothing else. Greedy
captions are compared, too; open_clip 3.3's beam search ranks by other scores, so its captions may differ.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.frame import Row, in_turns, timed
from benchmarks.limits import multiplied
from benchmarks.peers import PeerProcess
from sycoca_ds.model.generation import Decoding
from sycoca_ds.model.open_clip.weights import to_open_clip
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS

MODEL, STEPS = "coca_ViT-B-32", 20


def varied(model: SyCoCa) -> SyCoCa:
    """Weights as drawn would say the same word over and over, with all logits nearly equal."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("text_") and p.ndim == 2:
                p *= 4
    return model


def weights_of_a_token(model: SyCoCa, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and weights of one token of each row."""
    weights = [p for name, p in model.named_parameters() if name.startswith("text_") and p.ndim == 2]
    left_out = {id(model.text_encoder.token_embedding.weight), id(model.text_encoder.position_embedding)}
    left_out |= {id(model.text_encoder.proj.weight)} | {id(block.attention.kv.weight) for block in model.text_decoder.cross_blocks}
    return [(torch.randn(rows, w.shape[1], device=w.device, dtype=w.dtype), w) for w in weights if id(w) not in left_out]


def measure(options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Iterator[Row]:
    device = options.device
    config = PRESETS[MODEL].model
    config = replace(config, text=replace(config.text, context_length=76))
    model = varied(SyCoCa(config, seed=0)).eval().to(device)
    sizes = options.batch_sizes or ([2, 8] if options.quick else [8, 64])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.safetensors")
        save_file({key: value.cpu().contiguous() for key, value in to_open_clip(model.state_dict(), config).items()}, weights)
        for peer in peers.values():
            peer.ask("model_of", name=MODEL, weights=str(weights), train=False)
        for batch_size in sizes:
            image = torch.randn(batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(0))
            file = Path(folder, f"image_{batch_size}.safetensors")
            save_file({"image": image}, file)
            image = image.to(device)
            for beams in (1, 6):
                decoding = Decoding(beams, min_tokens=STEPS, length_penalty=1.0 if beams > 1 else 0.0)
                said: dict[str, list] = {"ours": []}

                def generate(image=image, decoding=decoding, said=said) -> None:
                    with torch.no_grad():
                        said["ours"].append(model("generate", image_BCHW=image, steps=STEPS, decoding=decoding).tolist())

                ways = {"ours": timed(generate, device)}
                for name, peer in peers.items():
                    peer.ask("generation", image=str(file), steps=STEPS, beams=beams)
                    ways[name] = peer.turn(said.setdefault(name, []))
                for way in ways.values() if batch_size == sizes[0] else ():
                    way()
                turns = in_turns(ways, options.turns if beams * batch_size < 64 else max(1, options.turns // 2))
                yield row(model, batch_size, beams, turns, said)


def row(model: SyCoCa, batch_size: int, beams: int, turns: dict, said: dict[str, list]) -> Row:
    work = weights_of_a_token(model, batch_size * beams)
    what = f"{MODEL}, {batch_size} pictures, {STEPS} tokens, {'greedy' if beams == 1 else f'{beams} beams'}, float32"
    limit = {"limit_turns": multiplied(work, work[0][0].device), "limit_work": batch_size, "limited_by": "its matrix products"}
    found = Row("generation", what, "tokens/s", batch_size * STEPS, turns.pop("ours"), turns, **limit)
    # open_clip's greedy captions end with [EOT] in the last place whatever the model says
    same = {n: sum(a[: STEPS - 1] == b[: STEPS - 1] for a, b in zip(said["ours"][-1], s[-1], strict=True)) for n, s in said.items()}
    found.more["captions equal to ours"] = {name: count for name, count in same.items() if name != "ours"}
    return found
