"""The measures of masking on scores of which it is known what they do: one that ignores the caption, noise, the place alone, one
that finds exactly what the caption names, and those of an untrained `tiny`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data_pipeline.world.drawn.demo_pixels import draw
from data_pipeline.world.drawn.demo_scenes import DemoScene, sample_scenes
from sycoca_ds.config import MaskingConfig, with_vocabulary
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import eval_image
from sycoca_ds.eval.masking.attending import attending
from sycoca_ds.eval.masking.verdict import IGNORED, warning
from sycoca_ds.eval.stats.controls import wrong_captions
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS
from tests.worlds.trainings.eval_world import make_tokenizer

SIDE = 6
"""Patches a side, as `tiny` has: two in a cell of the scene."""
PATCHES = SIDE * SIDE
SCENES = sample_scenes(400, seed=11)
OTHER = [SCENES[n] for n in wrong_captions([[scene.caption] for scene in SCENES])]
MASKING = MaskingConfig()


def noise(seed: int, pictures: int = len(SCENES)) -> torch.Tensor:
    return torch.rand(pictures, PATCHES, generator=torch.Generator().manual_seed(seed))


def named_patches(shown: DemoScene, said: DemoScene) -> torch.Tensor:
    """bool (PATCHES,): patches of the picture's objects that the caption names by colour and shape."""
    names = {(thing.color, thing.shape) for thing in (said.main, *said.others)}
    cells = {thing.cell for thing in (shown.main, *shown.others) if (thing.color, thing.shape) in names}
    each = SIDE // 3
    return torch.tensor([(row // each) * 3 + column // each in cells for row in range(SIDE) for column in range(SIDE)])


def finder(captions: list[DemoScene]) -> torch.Tensor:
    return torch.stack([named_patches(shown, said) for shown, said in zip(SCENES, captions, strict=True)]).float()


OWN, WRONG = finder(SCENES), finder(OTHER)
AREA = OWN.mean().item()
"""Share of a picture that its caption names: two objects of nine cells on average, 0.256."""
PLACE = noise(3, 1).expand(len(SCENES), -1)


@pytest.mark.parametrize(
    "what, own, other, ignored, bias, higher",
    [
        ("ignores the caption", noise(1), noise(1), 1.0, 0.0, 0.5),
        ("noise", noise(1), noise(2), 0.0, 0.0, 0.5),
        ("the place alone", PLACE, PLACE, 1.0, 1.0, 0.5),
        ("finds what is named, else noise", OWN + noise(1), WRONG + noise(2), 0.0, 0.0, 1.0),
        ("finds what is named, else the picture's own order", OWN + noise(1), WRONG + noise(1), 1 - AREA / 0.5, 0.0, 1.0),
        ("turned round by the other caption", noise(1), -noise(1), -1.0, 0.0, 1.0),
    ],
)
def test_what_each_score_comes_to(
    what: str, own: torch.Tensor, other: torch.Tensor, ignored: float, bias: float, higher: float
) -> None:
    """A fifth of the other captions happen to name an object of the picture: masks are a little nearer than the formula says."""
    found = attending(own, other, MASKING)
    assert found["caption_ignored"] == pytest.approx(ignored, abs=0.07), found
    assert found["position_bias"] == pytest.approx(bias, abs=0.03), found
    assert found["own_caption_higher"] == pytest.approx(higher, abs=0.05), found
    assert found["chance_overlap"] == 0.5 and found["caption_overlap"] == pytest.approx(0.5 + found["caption_ignored"] / 2)
    said = warning(found)
    assert (said is None) == (higher == 1.0) and ("they ignore it" in (said or "")) == (found["caption_ignored"] > IGNORED)


def test_spread_is_that_of_numbers_drawn_evenly() -> None:
    """Standard deviation of N numbers from 0 to 1: sqrt((N - 1) / 12 N) about their mean; range (N - 1) / (N + 1)."""
    found = attending(noise(1), noise(2), MASKING)
    assert found["score_std"] == pytest.approx(((PATCHES - 1) / (12 * PATCHES)) ** 0.5, rel=0.01)
    assert found["score_range"] == pytest.approx((PATCHES - 1) / (PATCHES + 1), rel=0.01)


@pytest.mark.parametrize("ratio, hidden", [(0.25, 9), (0.75, 27), (0.58, 21)])
def test_chance_is_the_share_of_hidden_patches(ratio: float, hidden: int) -> None:
    found = attending(noise(1), noise(2), MaskingConfig(high_ratio=ratio))
    assert found["chance_overlap"] == pytest.approx(hidden / PATCHES)
    assert found["caption_overlap"] == pytest.approx(hidden / PATCHES, abs=0.02)
    assert found["position_overlap"] == pytest.approx(hidden / PATCHES, abs=0.02)


def test_position_overlap_is_the_mean_over_all_pairs() -> None:
    scores, masking = noise(5, 7), MaskingConfig(high_ratio=0.4)
    masks = [set(row.argsort(descending=True)[:14].tolist()) for row in scores]
    pairs = [len(a & b) / 14 for i, a in enumerate(masks) for j, b in enumerate(masks) if i != j]
    assert attending(scores, scores, masking)["position_overlap"] == pytest.approx(np.mean(pairs))


def test_without_masked_image_modelling_the_captioning_mask_counts() -> None:
    own, masking = noise(1), MaskingConfig(mim="none", low_ratio=0.25)
    other = own.clone()
    other[:, :] = torch.where(own < 0.3, own, noise(2) + 1)  # the low ones stay, the high ones change
    assert attending(own, other, masking)["caption_ignored"] > 0.9
    assert attending(own, other, dataclasses.replace(masking, mim="text_guided", high_ratio=0.25))["caption_ignored"] < 0.2, (
        "the 9 highest of the same 25: 0.36 of them shared, 0.15 on the scale from 0.25 to 1"
    )


@pytest.mark.parametrize("similarity", ["token_max", "centred_token_max", "global"])
def test_an_untrained_model_depends_on_the_caption_and_knows_nothing_of_it(similarity: str, tmp_path) -> None:
    """Where a run starts. Its random products already move the masks with the caption, by half of what chance would and more; so an
    overlap below 1 alone is no sign that anything was learned. That the own caption scores higher is."""
    tokenizer = Tokenizer(make_tokenizer(tmp_path / "tokenizer.json"))
    config = with_vocabulary(PRESETS["tiny"].model, tokenizer.vocab_size)
    config = dataclasses.replace(config, masking=dataclasses.replace(config.masking, similarity=similarity))
    scenes, others = SCENES[:200], OTHER[:200]
    images = torch.stack([eval_image(draw(scene, (5, n)), config.image.image_size) for n, scene in enumerate(scenes)])
    captions = [[scene.caption for scene in them] for them in (scenes, others)]
    text_CBL = torch.stack([torch.from_numpy(tokenizer.encode(them, config.text.context_length)) for them in captions])
    with torch.no_grad():
        score_ICN = SyCoCa(config, seed=0).eval()("masking_scores", image_BCHW=images, text_CBL=text_CBL)
    found = attending(*score_ICN.unbind(1), config.masking)
    assert 0.2 < found["caption_ignored"] < 0.9, found
    assert found["own_caption_higher"] == pytest.approx(0.5, abs=0.1), "two standard deviations of 200 coin tosses: 0.07"
    assert 0.01 < found["score_std"] < 0.1, "cosines"
