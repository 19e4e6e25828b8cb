"""Generation among given choices: the tree against the list, the most likely choice against the uncached model."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.generation import Decoding
from tests.worlds.models.slow_generation import (
    EOT,
    KINDS,
    LISTED,
    MODES,
    PAD,
    Slow,
    images,
    shown_as_row,
    slow_beam_search,
    slow_next,
    trimmed,
    varied_model,
)


@pytest.mark.parametrize("decoding", [*MODES.values(), Decoding(beams=2), Decoding(sample=True, temperature=3.0)], ids=str)
def test_only_listed_choices_come_out(decoding: Decoding) -> None:
    model, picture = varied_model(eot=0.5), images(40)
    decoding = dataclasses.replace(decoding, min_tokens=0, length_penalty=1.0)  # by the sum the empty text would always win
    choices = Choices.from_ids(LISTED, EOT)
    ids = model("generate", image_BCHW=picture, steps=7, decoding=decoding, choices=choices, key_B=torch.arange(40))
    found = {tuple(row) for row in ids.tolist()}
    assert found <= {tuple(shown_as_row(choice, 7)) for choice in LISTED} and len(found) >= 2
    with pytest.raises(UserError, match="min_tokens = 1: expected 0 with choices"):
        model("generate", image_BCHW=picture, steps=7, decoding=Decoding(min_tokens=1), choices=choices)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(beams=3), Decoding(beams=3, length_penalty=1.0)], ids=["1", "3", "mean"])
def test_choosing_equals_the_slow_search_over_the_list(decoding: Decoding) -> None:
    model, picture, shuffle = varied_model(), images(6), random.Random(0)
    listed = [(*shuffle.choices(range(3, 9), k=shuffle.randint(0, 4)), EOT) for _ in range(60)]
    prompts = [(7, 8), (9,), ()] * 2
    prompt_BL = torch.tensor([[*p, *[PAD] * (2 - len(p))] for p in prompts])
    choices = Choices.from_ids(listed, EOT)
    ids = model("generate", image_BCHW=picture, steps=8, decoding=decoding, choices=choices, prompt_BL=prompt_BL)
    for b, prompt in enumerate(prompts):
        assert trimmed(ids[b]) == slow_beam_search(Slow(model, picture[b]), 8, decoding, prompt, listed)


@pytest.mark.parametrize("kind", KINDS)
def test_with_beams_for_all_the_most_likely_choice_comes_out(kind: str) -> None:
    """Each choice scored as a whole by the uncached model; words that the model seldom generates freely."""
    model, picture, shuffle = varied_model(kind, eot=0.5), images(6), random.Random(5)
    listed = [(*shuffle.choices(range(3, 50), k=shuffle.choice([3, 4])), EOT) for _ in range(25)]
    listed += [(*choice[:-1], 20, EOT) for choice in listed[:5]] + listed[:3]
    prompt = (4, 8) if kind == "plain" else ()
    prompt_BL = torch.tensor([prompt] * 6, dtype=torch.int64).reshape(6, len(prompt))
    decoding, choices = Decoding(beams=len(set(listed))), Choices.from_ids(listed, EOT)
    ids = model("generate", image_BCHW=picture, steps=9, decoding=decoding, choices=choices, prompt_BL=prompt_BL)
    best = []
    for image in picture:
        slow = Slow(model, image)
        best.append(max(listed, key=lambda choice, slow=slow: slow.score(choice, prompt)))
    assert [trimmed(row) for row in ids] == [prompt + choice for choice in best]
    assert len(set(best)) > 1


def test_thousands_of_choices() -> None:
    """As many as VQA's 3,128 answers: the tree itself against the list, and what comes out."""
    shuffle = random.Random(2)
    listed = [(*shuffle.choices(range(3, 50), k=shuffle.randint(1, 6)), EOT) for _ in range(3128)]
    choices = Choices.from_ids(iter(listed), EOT)
    prefixes = {choice[:length] for choice in listed for length in range(len(choice) + 1)}
    assert len(choices.start_N1) == len(prefixes) + 1 and len(choices.token_E) == len(prefixes) - 1
    assert (choices.longest, choices.widest, choices.largest_id) == (7, 47, 49)
    for choice in listed[::50]:
        node = torch.zeros(1, dtype=torch.int64)
        for length, token in enumerate(choice):
            allowed = slow_next(listed, choice[:length], Decoding(), 50)
            assert choices.allowed(node, 50)[0].nonzero().flatten().tolist() == allowed
            node = choices.follow(node, torch.tensor([token]))
        assert not choices.allowed(node, 50).any() and torch.equal(choices.follow(node, torch.tensor([PAD])), node)
    for decoding in (Decoding(), Decoding(beams=8), Decoding(sample=True)):
        model = varied_model()
        ids = model("generate", image_BCHW=images(8), steps=9, decoding=decoding, choices=choices, key_B=torch.arange(8))
        assert {trimmed(row) for row in ids} <= set(listed)


def test_a_tree_can_move_to_another_device() -> None:
    moved = Choices.from_ids(LISTED, EOT).to("meta")
    assert {moved.start_N1.device.type, moved.token_E.device.type, moved.child_E.device.type} == {"meta"} and moved.longest == 5


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no choices"),
        ([[5, EOT], []], "choice 1 "),
        ([[5]], "choice 0 "),
        ([[5, EOT, PAD]], "expected one <end_of_text>"),
        ([[EOT, 5, EOT]], "expected one <end_of_text>"),
        ([[-1, EOT]], "holds the token -1"),
    ],
)
def test_bad_choices_are_refused(ids: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Choices.from_ids(ids, EOT)
