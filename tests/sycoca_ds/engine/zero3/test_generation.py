"""Generation and features under ZeRO-3: parameters are gathered block by block, and all ranks must ask for the same ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from sycoca_ds.engine.policy import build_engine
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.generation import Decoding
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs
from tests.worlds.processes.launching import run_on_ranks
from tests.worlds.processes.today import wanting

STEPS = 9
WAYS = {
    "greedy": {},
    "beam": {"decoding": Decoding(beams=4)},
    "sample": {"decoding": Decoding(sample=True, top_k=20, top_p=0.9), "key_B": True},
    "choices": {"decoding": Decoding(beams=3), "choices": [[5, 6, 2], [5, 7, 2], [9, 2], [11, 12, 13, 2]]},
    "prompted": {"prompt_BL": [[5, 6, 0], [7, 0, 0], [8, 9, 10], [11, 0, 0]]},
}


def model_of(pooling: str) -> SyCoCa:
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    model = SyCoCa(dataclasses.replace(SMALL_MODEL, image=image), seed=2).eval()
    with torch.no_grad():
        model.text_decoder.head.weight[2] *= 3  # [EOT] often enough that captions end at different lengths
    return model


def outputs(model, seed: int) -> dict[str, list]:
    """Everything the model generates from the images of one seed; `model` is bare or a DeepSpeed engine."""
    inputs, found = random_inputs(seed=seed), {}
    for name, options in WAYS.items():
        options = dict(options)
        if "choices" in options:
            options["choices"] = Choices.from_ids(options["choices"], 2)
        if "prompt_BL" in options:
            options["prompt_BL"] = torch.tensor(options["prompt_BL"])
        if "key_B" in options:
            options["key_B"] = inputs["key_B"]
        with torch.no_grad():
            found[name] = model("generate", image_BCHW=inputs["image_BCHW"], steps=STEPS, **options).tolist()
    with torch.no_grad():
        found["image"] = model("image_features", image_BCHW=inputs["image_BCHW"]).tolist()
        found["text"] = model("text_features", text_BL=inputs["text_BL"]).tolist()
    return found


def on_a_rank(runtime: Runtime, folder: str, *poolings: str) -> None:
    """What each rank runs: models partitioned by ZeRO-3, one after the other, images of its own."""
    torch.set_num_threads(1)
    policy = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "memory_efficient_linear": False}}
    for pooling in poolings:
        engine = build_engine(model_of(pooling), None, {**policy, "train_micro_batch_size_per_gpu": 4})
        engine.eval()
        Path(folder, f"{pooling}.{runtime.rank}.json").write_text(json.dumps(outputs(engine, seed=runtime.rank)))
        engine.destroy()


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    run_on_ranks(folder, __name__, str(folder), *(item.callspec.params["pooling"] for item in wanting(request, "generated")))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["attention", pytest.param("cls", marks=pytest.mark.full)])
def test_two_ranks_generate_what_one_model_does(pooling: str, generated: Path) -> None:
    model, lengths = model_of(pooling), set()
    for rank in range(2):
        found, expected = json.loads((generated / f"{pooling}.{rank}.json").read_text()), outputs(model, seed=rank)
        for name in WAYS:
            assert found[name] == expected[name], (rank, name)
            lengths |= {row.index(2) if 2 in row else STEPS for row in found[name]}
        for name in ("image", "text"):
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(expected[name]), rtol=1e-5, atol=1e-6)
    assert len(lengths) > 3, "captions that end at different steps, or nothing could go out of step"
