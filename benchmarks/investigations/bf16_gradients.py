"""How far are bf16 gradients from float32?

    python benchmarks/investigations/bf16_gradients.py --checkpoint RUN --data TEST_FOLDER [--fresh]

One batch of the folder's pictures with their first captions through the run's model, as checkpointed or (`--fresh`) with its first
weights, once in float32 and once in bf16 as DeepSpeed trains it: weights and activations in bf16. Prints, for every part of the
model, the relative error ||g16 - g32|| / ||g32|| of its gradient and the cosine between the two. With attentive masking bf16 may
hide other patches, which is part of the difference; `--mask-by random` hides the same ones.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections import defaultdict

import torch

from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.eval.collection import Collection
from sycoca_ds.model.pixels import normalise
from sycoca_ds.model.sycoca import SyCoCa


def gradients(model: SyCoCa, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).train().to(dtype)
    loss = model("train", **batch)["loss"]
    loss.backward()
    print(f"{str(dtype).removeprefix('torch.')}: loss {loss.item():.4f}")
    return {name: p.grad.double().flatten() for name, p in model.named_parameters()}


def compare(g16: torch.Tensor, g32: torch.Tensor) -> str:
    error = ((g16 - g32).norm() / g32.norm()).item()
    return f"{error:8.4f} {torch.nn.functional.cosine_similarity(g16, g32, dim=0).item():8.5f} {g32.norm().item():11.3e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--fresh", action="store_true", help="the run's first weights instead of the checkpoint's")
    parser.add_argument("--mask-by", choices=("attention", "random"))
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    loaded = load_for_inference(options.checkpoint)
    config = loaded.config.model
    if options.mask_by:
        config = dataclasses.replace(config, masking=dataclasses.replace(config.masking, mask_by=options.mask_by))
    model = SyCoCa(config, seed=loaded.config.run.seed)
    if not options.fresh:
        model.load_state_dict(loaded.model.state_dict())
    pictures = Collection(options.data, config.image.image_size)
    numbers, image_BCHW = next(iter(pictures.batches(options.batch_size)))
    captions = [pictures.captions_of_image[number][0] for number in numbers]
    batch = {
        "image_BCHW": normalise(image_BCHW),
        "text_BL": torch.from_numpy(loaded.tokenizer.encode(captions, config.text.context_length)),
        "key_B": torch.arange(len(numbers)),
    }
    fp32, bf16 = (gradients(model, batch, dtype) for dtype in (torch.float32, torch.bfloat16))
    parts = defaultdict(list)
    for name in fp32:
        parts[name.split(".")[0]].append(name)
    print(f"{'gradient of':<34} {'error':>8} {'cosine':>8} {'norm':>11}")
    for part, names in {**parts, "all": list(fp32)}.items():
        print(f"{part:<34} {compare(torch.cat([bf16[n] for n in names]), torch.cat([fp32[n] for n in names]))}")
    for name in sorted(fp32, key=lambda n: -((bf16[n] - fp32[n]).norm() / fp32[n].norm()).item())[:3]:
        print(f"{name:<34} {compare(bf16[name], fp32[name])}")


if __name__ == "__main__":
    main()
