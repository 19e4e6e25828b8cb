"""Ranks and recalls against a slow loop over exact scores; ties, several captions, chunks, k above the candidates."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.stats.cosines import QUANTUM, exact_unit_vectors, most_error, own_ranks, top_candidates
from sycoca_ds.eval.stats.recalls import Retrieval, retrieve


def slow_ranks(query, candidate, group_q, group_c):
    """One sorted list a query: exact integer dot products, highest first, lower index first among equals."""
    q = [[round(v / QUANTUM) for v in row] for row in exact_unit_vectors(query).tolist()]
    c = [[round(v / QUANTUM) for v in row] for row in exact_unit_vectors(candidate).tolist()]
    ranks = []
    for row, own in zip(q, group_q, strict=True):
        score = [sum(a * b for a, b in zip(row, other, strict=True)) for other in c]
        order = sorted(range(len(c)), key=lambda j: (-score[j], j))
        ranks.append(next(place for place, j in enumerate(order) if group_c[j] == own))
    return ranks


def a_case(seed, images, most_captions, width, ties):
    rng = np.random.default_rng(seed)
    image_of_text = np.repeat(np.arange(images), rng.integers(1, most_captions + 1, images))
    rng.shuffle(image_of_text)
    if ties:  # features from a handful of prototypes: many scores are exactly equal
        prototypes = rng.standard_normal((4, width))
        image, text = prototypes[rng.integers(0, 4, images)], prototypes[rng.integers(0, 4, len(image_of_text))]
    else:
        image, text = rng.standard_normal((images, width)), rng.standard_normal((len(image_of_text), width))
    return [torch.tensor(x, dtype=torch.float32) for x in (image, text)] + [torch.tensor(image_of_text)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_equal_the_slow_loop_for_every_chunk(seed, ties):
    image, text, owner = a_case(seed, images=9 + seed, most_captions=7, width=5, ties=ties)
    group = list(range(len(image)))
    i2t, t2i = slow_ranks(image, text, group, owner.tolist()), slow_ranks(text, image, owner.tolist(), group)
    for chunk in (1, 2, 7, 1000):
        result = retrieve(image, text, owner, chunk)
        assert result.i2t_rank_I.tolist() == i2t
        assert result.t2i_rank_T.tolist() == t2i


def test_recalls_equal_argsort_counting():
    image, text, owner = a_case(11, images=30, most_captions=4, width=8, ties=False)
    numbers = retrieve(image, text, owner).metrics()
    unit = torch.nn.functional.normalize
    similarity = (unit(image.double()) @ unit(text.double()).T).numpy()
    for k in (1, 5, 10):
        top = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        hit = [any(owner[j] == i for j in row) for i, row in enumerate(top)]
        assert numbers[f"i2t_r{k}"] == pytest.approx(100 * np.mean(hit))
        top = np.argsort(-similarity.T, axis=1, kind="stable")[:, :k]
        assert numbers[f"t2i_r{k}"] == pytest.approx(100 * np.mean([owner[t] in row for t, row in enumerate(top)]))
    assert numbers["mTR"] == pytest.approx(np.mean([numbers[f"i2t_r{k}"] for k in (1, 5, 10)]))
    assert numbers["mIR"] == pytest.approx(np.mean([numbers[f"t2i_r{k}"] for k in (1, 5, 10)]))


def test_hand_worked_case():
    # two images; captions 0 and 2 belong to image 1, caption 1 to image 0
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 3.0]])
    result = retrieve(image, text, torch.tensor([1, 0, 1]))
    assert result.i2t_rank_I.tolist() == [1, 0]
    assert result.t2i_rank_T.tolist() == [1, 1, 0]
    assert result.metrics() | {} == {
        "i2t_r1": 50.0,
        "i2t_r5": 100.0,
        "i2t_r10": 100.0,
        "mTR": pytest.approx(250 / 3),
        "i2t_median_rank": 1.5,
        "t2i_r1": pytest.approx(100 / 3),
        "t2i_r5": 100.0,
        "t2i_r10": 100.0,
        "mIR": pytest.approx(700 / 9),
        "t2i_median_rank": 2.0,
    }


def test_interval_of_a_recall_is_that_of_a_share_of_images():
    """With one caption an image the bootstrap of a share is the binomial's; with five that fare alike, captions count as one."""
    images = 2000
    rank = np.repeat([0, 3, 7, 20], [600, 400, 200, 800])
    for captions in (1, 5):
        owner = np.repeat(np.arange(images), captions)
        numbers = Retrieval(rank, np.repeat(rank, captions)).intervals(owner, seed=1)
        for k, share in ((1, 0.3), (5, 0.5), (10, 0.6)):
            half = 100 * 1.96 * np.sqrt(share * (1 - share) / images)
            for name in ("i2t", "t2i"):
                assert numbers[f"{name}_r{k}_low"] == pytest.approx(100 * share - half, abs=0.1 * half)
                assert numbers[f"{name}_r{k}_high"] == pytest.approx(100 * share + half, abs=0.1 * half)
        assert numbers == Retrieval(rank, np.repeat(rank, captions)).intervals(owner, seed=1)
        assert numbers != Retrieval(rank, np.repeat(rank, captions)).intervals(owner, seed=2)


def test_interval_weighs_an_image_by_its_captions():
    """Image 0 has three captions, all found; image 1 one, not found: of the four draws of two images R@1 is 100, 75, 75, 0."""
    result = Retrieval(np.array([0, 1]), np.array([0, 0, 0, 5]))
    assert result.metrics()["t2i_r1"] == 75 and result.metrics()["i2t_r1"] == 50
    numbers = result.intervals(np.array([0, 0, 0, 1]))
    assert [numbers[name] for name in ("t2i_r1_low", "t2i_r1_high", "i2t_r1_low", "i2t_r1_high")] == [0, 100, 0, 100]
    assert [numbers[name] for name in ("t2i_r10_low", "t2i_r10_high", "i2t_r5_low")] == [100, 100, 100]


def test_all_equal_scores_rank_by_index():
    ones = torch.ones(6, 3)
    i2t, t2i = own_ranks(ones, ones, torch.arange(6))
    assert i2t.tolist() == t2i.tolist() == [0, 1, 2, 3, 4, 5]


def exact_ranks(image, text, owner):
    """Both directions from one float64 product, which is exact, by a stable sort."""
    score = exact_unit_vectors(image) @ exact_unit_vectors(text).T
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    i2t = (owner[order] == torch.arange(len(image))[:, None]).long().argmax(dim=1)
    order = torch.argsort(score.T, dim=1, descending=True, stable=True)
    return i2t.tolist(), (order == owner[:, None]).long().argmax(dim=1).tolist()


def near_ties(generator, count, width):
    """Unit vectors in pairs and triples that differ in the last bits alone: float32 products cannot tell their scores apart."""
    few = torch.nn.functional.normalize(torch.randn(max(1, count // 20), width, generator=generator), dim=1)
    rows = few[torch.randint(len(few), (count,), generator=generator)].double()
    return rows + 2.0**-23 * torch.randint(-1, 2, (count, width), generator=generator)


@pytest.mark.parametrize("kind", ["near ties", "duplicates", "few values", "all equal", "spread", "negative"])
@pytest.mark.parametrize("width", [16, 512])
def test_float32_screening_changes_no_rank(kind, width):
    generator = torch.Generator().manual_seed(width)
    images, texts = 60, 300
    owner = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=generator)])
    owner = owner[torch.randperm(texts, generator=generator)]
    if kind == "near ties":
        image, text = near_ties(generator, images, width), near_ties(generator, texts, width)
    elif kind == "duplicates":  # captions that many pictures share, pictures that are there twice
        image = torch.randn(images, width, generator=generator)[torch.randint(images // 2, (images,), generator=generator)]
        text = image[owner] + torch.randn(5, width, generator=generator)[torch.randint(5, (texts,), generator=generator)]
    elif kind == "few values":
        image, text = (torch.randint(-1, 2, (n, width), generator=generator).double() + 1e-3 for n in (images, texts))
    elif kind == "all equal":
        image, text = torch.ones(images, width), torch.ones(texts, width)
    else:
        image, text = torch.randn(images, width, generator=generator), torch.randn(texts, width, generator=generator)
        text = text if kind == "spread" else -image[owner]
    i2t, t2i = exact_ranks(image, text, owner)
    for chunk in (1000, 256, 17):
        found = own_ranks(image, text, owner, chunk)
        assert found[0].tolist() == i2t and found[1].tolist() == t2i


def test_float32_alone_would_get_near_ties_wrong():
    """What the test above would miss without: ranks by float32 products differ, by less than the bound."""
    generator = torch.Generator().manual_seed(512)
    image, text = exact_unit_vectors(near_ties(generator, 60, 512)), exact_unit_vectors(near_ties(generator, 300, 512))
    exact, rounded = image @ text.T, (image.float() @ text.float().T).double()
    assert 0 < (exact - rounded).abs().max() < most_error(512)
    assert not torch.equal(exact.argsort(dim=1, stable=True), rounded.argsort(dim=1, stable=True))


def test_scores_are_exact_sums():
    """The promise behind "chunk size never changes ranks": the float64 product equals rational arithmetic to the last
    bit."""
    features = exact_unit_vectors(torch.randn(6, 300, generator=torch.Generator().manual_seed(1)))
    product = features @ features.T
    for i in range(6):
        for j in range(6):
            exact = sum(
                (Fraction(a) * Fraction(b) for a, b in zip(features[i].tolist(), features[j].tolist(), strict=True)),
                Fraction(0),
            )
            assert Fraction(product[i, j].item()) == exact


def test_bf16_and_scale_do_not_matter_beyond_their_values():
    image, text, owner = a_case(3, 12, 3, 6, ties=False)
    image, text = image.bfloat16(), text.bfloat16()
    expected = retrieve(image.float(), text.float(), owner)
    scaled = retrieve(image * 4, text * 0.5, owner)
    assert scaled.i2t_rank_I.tolist() == expected.i2t_rank_I.tolist()
    assert scaled.t2i_rank_T.tolist() == expected.t2i_rank_T.tolist()


def test_top_candidates_follow_the_ranks():
    image, text, owner = a_case(4, 10, 3, 4, ties=True)
    ranks = retrieve(image, text, owner).t2i_rank_T
    best = top_candidates(text, image, 99)
    assert best.shape == (len(text), 10)
    assert [row.tolist().index(own) for row, own in zip(best, owner.tolist(), strict=True)] == ranks.tolist()


def test_errors_name_the_row():
    image, text, owner = a_case(0, 4, 2, 3, ties=False)
    with pytest.raises(ValueError, match="image 4 has no caption"):
        retrieve(torch.cat([image, image[:1]]), text, owner)
    with pytest.raises(ValueError, match="must lie in 0..3"):
        retrieve(image, text, owner + 1)
    image[2, 0] = float("nan")
    with pytest.raises(UserError, match="features are not finite: the checkpoint is damaged or diverged"):
        retrieve(image, text, owner)
