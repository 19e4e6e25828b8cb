"""Sampling: the filters against sorted lists, frequencies against the filtered softmax, noise as a pure function of the key."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from sycoca_ds.model.generation import Captioner, Decoding, filtered, generate, gumbel_noise
from sycoca_ds.model.image_encoder import patchify
from sycoca_ds.model.masking.patches import random_scores
from tests.worlds.models.slow_generation import (
    KINDS,
    MODES,
    PAD,
    SOT,
    STEPS,
    Slow,
    images,
    trimmed,
    varied_model,
)


@pytest.mark.parametrize("kind", KINDS)
def test_very_cold_sampling_is_greedy(kind: str) -> None:
    model, inputs = varied_model(kind), {"image_BCHW": images(4), "steps": STEPS}
    greedy = model("generate", **inputs)
    for temperature in (1e-4, 1e-38, 5e-324):
        cold = Decoding(sample=True, temperature=temperature)
        assert torch.equal(model("generate", **inputs, decoding=cold, key_B=torch.arange(4)), greedy)
        cut = dataclasses.replace(cold, top_k=9, top_p=0.9)
        assert torch.equal(model("generate", **inputs, decoding=cut, key_B=torch.arange(4)), greedy)
    one = Decoding(sample=True, temperature=9.0, top_k=1)
    assert torch.equal(model("generate", **inputs, decoding=one, key_B=torch.arange(4)), greedy)
    hot = model("generate", **inputs, decoding=Decoding(sample=True), key_B=torch.arange(4))
    assert not torch.equal(hot, greedy) and len({trimmed(row) for row in hot}) == 4


def slow_filter(logits: list[float], decoding: Decoding) -> dict[int, float]:
    """{token: probability} by sorted Python lists: temperature, then top_k, then top_p."""
    weights = sorted(((math.exp(x / decoding.temperature), -i) for i, x in enumerate(logits) if x > -math.inf), reverse=True)
    weights = weights[: decoding.top_k or None]
    kept, total, reached = [], sum(weight for weight, _ in weights), 0.0
    for weight, minus in weights:
        if reached < decoding.top_p * total or decoding.top_p == 1:
            kept.append((weight, -minus))
        reached += weight
    total = sum(weight for weight, _ in kept)
    return {token: weight / total for weight, token in kept}


FILTERS = [
    Decoding(sample=True),
    Decoding(sample=True, temperature=2.0, top_k=5),
    Decoding(sample=True, temperature=0.5, top_p=0.7),
    Decoding(sample=True, temperature=1.5, top_k=8, top_p=0.6),
    Decoding(sample=True, top_p=1e-6),
]


@pytest.mark.parametrize("decoding", FILTERS, ids=str)
def test_filters_equal_a_slow_one(decoding: Decoding) -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)) * 2
    logits[:, [0, 1]] = -math.inf
    logits[3, 4:9] = logits[3].max() + 1  # equal ones: the lower token first
    found = filtered(logits, decoding).softmax(dim=1)
    for row, expected in zip(found, [slow_filter(row, decoding) for row in logits.tolist()], strict=True):
        assert row.nonzero().flatten().tolist() == sorted(expected)
        torch.testing.assert_close(row[sorted(expected)], torch.tensor([expected[t] for t in sorted(expected)]))


def test_a_low_temperature_keeps_the_digits_of_the_likely_tokens() -> None:
    """Logits near 256 whose differences float32 holds exactly."""
    steps = torch.arange(40) % 7
    found = filtered((256 + steps * 2.0**-15)[None], Decoding(sample=True, temperature=1e-4)).softmax(dim=1)[0]
    torch.testing.assert_close(found.double(), (steps.double() * 2.0**-15 / 1e-4).softmax(dim=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("decoding", FILTERS[:4], ids=str)
@pytest.mark.parametrize("place", [0, 3])
def test_sampled_frequencies_are_those_of_the_filtered_softmax(decoding: Decoding, place: int) -> None:
    """10,000 keys, the token after a prompt of `place` tokens: Pearson's chi-square against its distribution."""
    model, image, count = varied_model(), images(1)[0], 10_000
    prompt = tuple(range(7, 7 + place))
    logits = Slow(model, image).logits(prompt).tolist()
    logits[PAD] = logits[SOT] = -math.inf
    expected = slow_filter(logits, decoding)
    encoder = model.image_encoder
    with torch.no_grad():
        seen = encoder.read(encoder(patchify(image[None], 6)))[1].expand(count, -1, -1)
        ids = generate(
            Captioner(model.text_encoder, model.text_decoder, seen),
            place + 1,
            model.config.text,
            decoding,
            prompt_BL=torch.tensor([prompt], dtype=torch.int64).expand(count, -1),
            key_B=torch.arange(count) * 3 + 17,
        )
    found = ids[:, place].bincount(minlength=50).tolist()
    assert {token for token, number in enumerate(found) if number} <= set(expected)
    likely = {token: p for token, p in expected.items() if p * count >= 5}
    chi2 = sum((found[token] - p * count) ** 2 / (p * count) for token, p in likely.items())
    freedom = max(len(likely) - 1, 1)
    assert len(likely) >= 2 and chi2 < freedom + 5 * math.sqrt(2 * freedom) + 5  # about six deviations


def test_noise_is_standard_gumbel_and_independent_of_step_and_key() -> None:
    noise = torch.stack([gumbel_noise(torch.arange(200), step, 2000) for step in range(4)]).double()
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.5772157, abs=5 * 1.2825 / noise.numel() ** 0.5)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    bound = 5 / (200 * 2000) ** 0.5
    for a, b in itertools.combinations(noise, 2):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < bound
    assert abs(torch.corrcoef(torch.stack([noise[0, 1:].flatten(), noise[0, :-1].flatten()]))[0, 1]) < bound
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gumbel_noise(shuffled, 2, 2000).double(), noise[2, shuffled])


def test_the_hash_at_its_ends_gives_finite_noise() -> None:
    """Keys looked for whose hash is all ones and all zeros: an infinite noise would force or forbid a token."""
    for key, token, uniform, bounds in ((1136372, 45, 1 - 2.0**-24, (17, 18)), (372450, 39, 0.0, (-3, -2.5))):
        key_B = torch.tensor([key])
        assert random_scores(key_B, 50, salt=3)[0, token].item() == uniform
        assert bounds[0] < gumbel_noise(key_B, 3, 50)[0, token].item() < bounds[1]


def test_equal_keys_give_equal_samples_and_others_differ() -> None:
    model, picture = varied_model(), images(1).expand(6, -1, -1, -1)
    keys = torch.tensor([5, 6, 5, 7 << 40, -3, 6])
    ids = [trimmed(row) for row in model("generate", image_BCHW=picture, steps=STEPS, decoding=MODES["sample"], key_B=keys)]
    assert ids[0] == ids[2] and ids[1] == ids[5] and len(set(ids)) == 4
    with pytest.raises(ValueError, match="sampling needs key_B"):
        model("generate", image_BCHW=picture, steps=2, decoding=MODES["sample"])
