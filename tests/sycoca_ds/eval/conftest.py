"""A small data set with two captions a picture, an untrained run, and what evaluating it leaves."""

import json

import pytest

from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.trainings.eval_world import make_data, make_labels, make_run

REQUIRE = ("retrieval.t2i_r10>=0", "captioning.cider>=9")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_data(folder / "data", images=24, captions=2)
    make_labels(folder / "labels.json")
    make_run(folder / "run")
    return folder


@pytest.fixture(scope="session")
def done(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "java_command", lambda: None)
        status = evaluate(
            EvaluateConfig(
                str(world / "run"),
                str(world / "data"),
                out=str(world / "out"),
                labels=str(world / "labels.json"),
                require=REQUIRE,
                device="cpu",
                precision="fp32",
                gallery=4,
            )
        )
    return status, json.loads((world / "out" / "results.json").read_text())
