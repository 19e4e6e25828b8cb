"""Names of weights: what DDP, torch.compile and checkpointing put around them comes off, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint.initial_weights import take_shared
from sycoca_ds.model.shapes import our_shapes, unwrapped
from tests.worlds import REPOSITORY
from tests.worlds.models.small_model import SMALL_MODEL, small_model


def wrapped(*ways: str) -> torch.nn.Module:
    """A model in the wrappers themselves, from the inside out."""
    model = small_model()
    for way in ways:
        if way == "block":
            model.image_encoder.blocks[0] = torch.compile(model.image_encoder.blocks[0])
        else:
            model = torch.compile(model) if way == "compile" else torch.nn.DataParallel(model)
    return model


@pytest.mark.parametrize(
    "ways", [("compile",), ("block",), ("parallel",), ("compile", "parallel"), ("block", "parallel", "compile", "parallel")]
)
def test_weights_keep_their_names_whatever_they_were_wrapped_in(ways: tuple[str, ...]) -> None:
    plain, given = small_model().state_dict(), wrapped(*ways).state_dict()
    assert list(given) != list(plain)
    found = unwrapped(given, "here")
    assert list(found) == list(plain) and all(torch.equal(found[name], value) for name, value in plain.items())
    model = small_model()
    torch.nn.init.zeros_(model.text_encoder.cls_embedding)
    said = take_shared(model, SMALL_MODEL, given, "here")
    assert "image_decoder taken" in said and torch.equal(model.text_encoder.cls_embedding, plain["text_encoder.cls_embedding"])


def test_names_that_only_look_like_wrappers_stay() -> None:
    """`module` is a wrapper where every name has it first; two names that become one are an error."""
    value = torch.zeros(1)
    assert list(unwrapped({"module.a": value, "b": value}, "here")) == ["module.a", "b"]
    assert list(unwrapped({"module": value}, "here")) == ["module"] and unwrapped({}, "here") == {}
    with pytest.raises(UserError, match="here: a.b and a._orig_mod.b are one name without wrappers"):
        unwrapped({"a.b": value, "a._orig_mod.b": value}, "here")


def test_shapes_are_told_without_the_compiler() -> None:
    """Which torch's first values ask for on the meta device; they cost a second."""
    script = (
        "import sys; from sycoca_ds.model.shapes import our_shapes; from tests.worlds.models.small_model import SMALL_MODEL; "
        "print(len(our_shapes(SMALL_MODEL)), 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    plain = {name: tuple(value.shape) for name, value in small_model().state_dict().items()}
    assert done.stdout == f"{len(plain)} False\n", done.stderr
    assert our_shapes(SMALL_MODEL) == plain
