"""What open_clip itself computes, for tests/sycoca_ds/model/open_clip/test_peer.py.

Runs under the Python that has open_clip 3.3 (`make peer`).

    peer.py JOBS.json     runs each job of a list, in order
    peer.py version

A job is {"model": NAME or FILE.json, "seed": S, "folder": F, "inputs": I, "answers": A}: a shipped or given configuration with
random weights, saved to F as open_clip saves them; without "model": F is loaded as open_clip's `local-dir:F`. I and A are
safetensors: image, text (and picture) in; unit vectors, caption logits, logit scale (and the picture prepared) out. The job
{"shipped": NAME, "folder": F} writes a shipped configuration to F/NAME.json, {"tokenize": TEXTS, "context_length": L, "folder": F}
the ids of its tokenizer to F/ids.json and CLIP's merges to F/merges.txt.gz; with "of": G the ids are those of the tokenizer that it
finds in G. The job {"generate": F, "images": [FILE], "arguments": {NAME: VALUE}, "answers": FILE.json} is what open_clip's users
type: model and tokenizer of `local-dir:F`, the weights' file loaded strictly, `generate` with these arguments; ids and texts.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def skip_initialisation() -> None:
    """Half of the time of a large model; `fill` or the loaded weights give every parameter its value."""
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            setattr(nn.init, name, lambda tensor, *_, **__: tensor)


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Every parameter from one generator, none of them where a fresh model has it: a norm that is 1 or a bias that is 0 would
    hide a wrong name. Matrices keep the size of what passes through them, so that rounding stays small."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    for name, p in model.named_parameters():
        mean, std = 0.0, 0.1
        if name == "logit_scale":
            mean, std = 3.0, 0.1
        elif id(p) in norms and name.endswith("weight"):
            mean, std = 1.0, 0.2
        elif name.endswith("conv1.weight"):
            std = p[0].numel() ** -0.5
        elif name.endswith(("proj", "text_projection")):  # (in, out)
            std = p.shape[0] ** -0.5
        elif name.endswith(("embedding", "cls_emb", "query", "token_embedding.weight")):
            std = 0.5
        elif p.ndim == 2:
            std = p.shape[1] ** -0.5
        p.copy_(torch.empty(p.shape).normal_(mean, std, generator=generator))


@torch.no_grad()
def answers(model: nn.Module, inputs: dict[str, Tensor], prepare) -> dict[str, Tensor]:
    """Unit vectors of images and texts, caption logits at every position, the logit scale, and a prepared picture."""
    model.eval()
    found = {"logit_scale": model.logit_scale.exp()}
    if hasattr(model, "text_decoder"):
        out = model(inputs["image"], inputs["text"], output_labels=False)
        found |= {"image_vector": out["image_features"], "text_vector": out["text_features"], "logits": out["logits"]}
    else:
        found["image_vector"] = model.encode_image(inputs["image"], normalize=True)
        found["text_vector"] = model.encode_text(inputs["text"], normalize=True)
    if "picture" in inputs:
        from PIL import Image

        found["prepared"] = prepare(Image.fromarray(inputs["picture"].numpy()))
    return {name: value.contiguous() for name, value in found.items()}


def captions(job: dict) -> dict:
    """Ids and texts of pictures."""
    from PIL import Image

    where = f"local-dir:{job['generate']}"
    model, _, prepare = open_clip.create_model_and_transforms(where)
    model.load_state_dict(load_file(Path(job["generate"]) / "open_clip_model.safetensors"), strict=True)
    tokenizer = open_clip.get_tokenizer(where)
    images = torch.stack([prepare(Image.open(file)) for file in job["images"]])
    ids = model.eval().generate(images, **job["arguments"])
    return {"ids": ids.tolist(), "texts": tokenizer.tokenizer.batch_decode(ids, skip_special_tokens=True)}


def run(job: dict) -> None:
    """One job of the list."""
    if job.get("generate"):
        Path(job["answers"]).write_text(json.dumps(captions(job)))
        return
    folder, name = Path(job["folder"]), job.get("model")
    if texts := job.get("tokenize"):
        if of := job.get("of"):
            (folder / "ids.json").write_text(json.dumps(open_clip.get_tokenizer(f"local-dir:{of}")(texts).tolist()))
            return
        tokenizer = open_clip.SimpleTokenizer(context_length=job["context_length"])
        (folder / "ids.json").write_text(json.dumps(tokenizer(texts).tolist()))
        shutil.copyfile(open_clip.tokenizer.default_bpe(), folder / "merges.txt.gz")
        return
    if shipped := job.get("shipped"):
        (folder / f"{shipped}.json").write_text(json.dumps(open_clip.get_model_config(shipped)))
        return
    if name is None:
        model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    else:
        if name.endswith(".json"):
            open_clip.add_model_config(Path(name))
            name = Path(name).stem
        model, _, prepare = open_clip.create_model_and_transforms(name)
        fill(model, job["seed"])
        folder.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
        config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": model.visual.preprocess_cfg}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(answers(model, load_file(job["inputs"]), prepare), job["answers"])


def main() -> None:
    if not open_clip.__version__.startswith("3.3."):
        sys.exit(f"open_clip {open_clip.__version__} under {sys.executable}: expected 3.3, which `make peer` installs")
    if sys.argv[1:] == ["version"]:
        print(open_clip.__version__)
        return
    skip_initialisation()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)


if __name__ == "__main__":
    main()
