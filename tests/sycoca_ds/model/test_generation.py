"""Greedy and beam search against slow references: the whole uncached model on every prefix, Python beam search, all texts; and
what must not matter (batch, padding of prompts, how soon a caption ends)."""

from __future__ import annotations

import copy
import dataclasses
import math
import random

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.generation import Captioner, Decoding, generate, largest
from sycoca_ds.model.image_encoder import patchify
from tests.worlds.models.slow_generation import (
    EOT,
    KINDS,
    LISTED,
    MODES,
    PAD,
    SOT,
    STEPS,
    Slow,
    SlowTable,
    Table,
    all_texts,
    ended,
    images,
    shown_as_row,
    slow_beam_search,
    table_text,
    trimmed,
    varied_model,
)
from tests.worlds.models.small_model import random_inputs


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_the_whole_model_on_every_prefix(kind: str) -> None:
    model, picture = varied_model(kind), images(10)
    ids = model("generate", image_BCHW=picture, steps=STEPS)
    lengths = set()
    for row, image in zip(ids, picture, strict=True):
        slow, prefix = Slow(model, image), ()
        while len(prefix) < STEPS and not ended(prefix):
            logits = slow.logits(prefix).clone()
            logits[[PAD, SOT]] = -math.inf
            prefix = (*prefix, int(logits.argmax()))
        assert row.tolist() == shown_as_row(prefix, STEPS)
        lengths.add(len(prefix))
    assert len(lengths) > 3 and len({trimmed(row) for row in ids}) == 10, "captions of one kind would test little"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_equal_uncached_ones(kind: str) -> None:
    """Two texts an image, with beams changing places on the way; up to the last place of the context."""
    model, picture = varied_model(kind), images(3)
    encoder = model.image_encoder
    captioner = Captioner(model.text_encoder, model.text_decoder, encoder.read(encoder(patchify(picture, 6)))[1])
    slow = [Slow(model, image) for image in picture]
    generator, prefixes = torch.Generator().manual_seed(0), [()] * 6
    token_R = torch.full((6,), SOT)
    for place in range(12):
        logits = captioner.next_logits(token_R)
        assert logits.dtype == torch.float32
        for r, prefix in enumerate(prefixes):
            torch.testing.assert_close(logits[r], slow[r // 2].logits(prefix), rtol=1e-5, atol=1e-5)
        if place in (3, 7):
            order = [1, 1, 3, 2, 4, 4]
            captioner.reorder(torch.tensor(order))
            prefixes = [prefixes[r] for r in order]
        token_R = torch.randint(3, 50, (6,), generator=generator)
        prefixes = [(*prefix, int(token)) for prefix, token in zip(prefixes, token_R, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "decoding",
    [Decoding(beams=2), Decoding(beams=4), Decoding(beams=3, length_penalty=1.0), Decoding(beams=3, min_tokens=3)],
    ids=["2", "4", "3 by mean", "3 from 3 words on"],
)
def test_beam_search_equals_a_slow_one(kind: str, decoding: Decoding) -> None:
    model, picture = varied_model(kind), images(4, seed=1)
    ids = model("generate", image_BCHW=picture, steps=6, decoding=decoding)
    for row, image in zip(ids, picture, strict=True):
        assert trimmed(row) == slow_beam_search(Slow(model, image), 6, decoding)
    # kept from passing by a search that never looks beyond the best token
    assert not torch.equal(ids, model("generate", image_BCHW=picture, steps=6, decoding=dataclasses.replace(decoding, beams=1)))


@pytest.mark.parametrize("trial", range(60))
def test_beam_search_on_random_tables_equals_a_slow_one(trial: int) -> None:
    """Tables in place of a model: flat ones and steep ones, more beams than ways on, prompts and choices."""
    shuffle = random.Random(trial)
    vocab_size, scale = shuffle.choice([4, 6, 9]), shuffle.choice([0.3, 2.0, 6.0])
    tables = torch.randn(3, 8, vocab_size, vocab_size, generator=torch.Generator().manual_seed(trial)) * scale
    decoding = Decoding(
        beams=shuffle.choice([2, 3, 8]),
        length_penalty=shuffle.choice([-1.0, 0.0, 0.5, 1.0, 3.0]),
        min_tokens=shuffle.choice([0, 0, 2]),
    )
    prompts = [tuple(shuffle.choices(range(3, vocab_size), k=shuffle.choice([0, 0, 1, 3]))) for _ in range(3)]
    listed = None
    if decoding.min_tokens == 0 and trial % 3 == 0:
        listed = [(EOT,)] + [(*shuffle.choices(range(3, vocab_size), k=shuffle.randint(1, 4)), EOT) for _ in range(12)]
    ids = generate(
        Table(tables),
        8,
        table_text(vocab_size),
        decoding,
        prompt_BL=torch.tensor([[*p, *[PAD] * (3 - len(p))] for p in prompts]),
        choices=listed and Choices.from_ids(listed, EOT),
    )
    for row, table, prompt in zip(ids, tables, prompts, strict=True):
        assert row.tolist() == shown_as_row(slow_beam_search(SlowTable(table), 8, decoding, prompt, listed), 8)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
def test_with_many_beams_the_best_of_all_texts_is_found(penalty: float) -> None:
    model, picture = varied_model(vocab_size=6, eot=1.0), images(4)
    texts = all_texts(range(3, 6), 3)
    assert len(texts) == 1 + 3 + 9 + 27
    ids = model("generate", image_BCHW=picture, steps=3, decoding=Decoding(beams=len(texts), length_penalty=penalty))
    for row, image in zip(ids, picture, strict=True):
        slow = Slow(model, image)
        assert trimmed(row) == max(texts, key=lambda text: slow.score(text) / len(text) ** penalty)


def test_longer_texts_win_with_a_larger_penalty() -> None:
    model, picture = varied_model(), images(8)
    lengths = [
        sum(len(trimmed(row)) for row in model("generate", image_BCHW=picture, steps=STEPS, decoding=Decoding(4, length_penalty=p)))
        for p in (-1.0, 0.0, 1.0, 3.0)
    ]
    assert lengths == sorted(lengths) and lengths[1] < lengths[2] < lengths[3]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_equal_scores_are_settled_by_the_lower_token(beams: int) -> None:
    """All logits equal: the first allowed token, everywhere. The empty text is the likeliest of all, so [EOT] is kept away."""
    ids = generate(Table(torch.zeros(2, 4, 9, 9)), 4, table_text(9), Decoding(beams, min_tokens=4))
    assert ids.tolist() == [[3, 3, 3, 3]] * 2


def test_largest_breaks_ties_by_place_and_knows_signs() -> None:
    x = torch.tensor([[-1.0, -0.0, 0.0, 3.0, 3.0, -math.inf, -2.5, -math.inf], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]])
    assert largest(x, 8).tolist() == [[3, 4, 1, 2, 0, 6, 5, 7], [7, 0, 1, 2, 3, 4, 5, 6]]
    values = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0)).bfloat16().float()  # many are equal
    expected = [sorted(range(4000), key=lambda i, row=row: (-row[i], i))[:50] for row in values.tolist()]
    assert largest(values, 50).tolist() == expected


@pytest.mark.parametrize("columns", [64 * 40, 64 * 40 + 17])
def test_largest_of_long_rows_by_blocks_breaks_ties_alike(columns: int) -> None:
    """Ties inside a block, across blocks, with the rest behind the last block, and rows that are nearly all equal."""
    generator = torch.Generator().manual_seed(columns)
    values = torch.randn(6, columns, generator=generator).mul(2).round()
    values[1], values[2, 5:] = -math.inf, -math.inf
    values[3] = 0.0
    values[3, [columns - 1, 64 * 39, 63, 64]] = 1.0
    values[4, -1] = 99.0
    for k in (1, 4, 6):
        expected = [sorted(range(columns), key=lambda i, row=row: (-row[i], i))[:k] for row in values.tolist()]
        assert largest(values, k).tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("texts", [1, 3])
def test_images_that_are_given_up_leave_the_others_as_they_are(texts: int) -> None:
    """Logits of those that stay, to the last bits, with texts that changed places before; then of none."""
    model, picture = varied_model(), images(4)
    encoder = model.image_encoder
    seen = encoder.read(encoder(patchify(picture, 6)))[1]
    generator, rows = torch.Generator().manual_seed(1), torch.arange(4 * texts).view(4, texts)
    order = rows[:, torch.randint(texts, (texts,), generator=generator)].flatten()
    tokens = torch.randint(3, 50, (6, 4 * texts), generator=generator)
    whole, fewer = (Captioner(model.text_encoder, model.text_decoder, seen, steps=6) for _ in range(2))
    stay = torch.tensor([0, 2])
    for step, token_R in enumerate(tokens):
        expected = whole.next_logits(token_R)
        kept_R = rows[stay].flatten() if step > 2 else rows.flatten()
        torch.testing.assert_close(fewer.next_logits(token_R[kept_R]), expected[kept_R], rtol=1e-5, atol=1e-5)
        if step == 1:
            whole.reorder(order)
            fewer.reorder(order)
        if step == 2:
            fewer.keep(stay)
    fewer.keep(torch.arange(0))
    fewer.places.step = 5
    assert fewer.next_logits(tokens[0, :0]).shape == (0, 50)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(beams=3), Decoding(beams=3, length_penalty=1.0)], ids=["1", "3", "mean"])
def test_texts_that_have_ended_take_no_more_rows(decoding: Decoding) -> None:
    """The model's rows at each step: as many as images are left, when three quarters of them or fewer are, times the beams."""
    model, given = varied_model(), []
    hook = model.text_decoder.head.register_forward_pre_hook(lambda _, inputs: given.append(len(inputs[0])))
    ids = model("generate", image_BCHW=images(10), steps=STEPS, decoding=decoding)
    hook.remove()
    assert len(given) == STEPS and given[0] == 10 * decoding.beams and given == sorted(given, reverse=True)
    assert given[-1] < given[0], "captions of one length would test little"
    if decoding.beams == 1:
        length_B = torch.tensor([len(trimmed(row)) for row in ids])
        left = [int((length_B > step).sum()) for step in range(STEPS)]
        assert all(live <= rows and (rows == live or live > 0.75 * rows) for live, rows in zip(left, given, strict=True))


@torch.no_grad()
def test_bf16_on_a_cpu_keeps_keys_and_values_as_attention_takes_them() -> None:
    model, picture = copy.deepcopy(varied_model()).bfloat16(), images(3).bfloat16()
    encoder = model.image_encoder
    seen = encoder.read(encoder(patchify(picture, 6)))[1]
    captioner = Captioner(model.text_encoder, model.text_decoder, seen)
    tokens = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(2))
    logits_RLV = torch.stack([captioner.next_logits(token_R) for token_R in tokens.T], dim=1)
    assert {x.dtype for cache in captioner.encoder_past for x in (cache.k, cache.v)} == {torch.float32}
    expected = model.text_decoder(model.text_encoder(tokens)[1], seen).float()
    assert (logits_RLV - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("prompted", [False, True])
def test_the_batch_changes_nothing(mode: str, constrained: bool, prompted: bool) -> None:
    model, picture, keys = varied_model(), images(4), torch.arange(4) + 40
    decoding = dataclasses.replace(MODES[mode], min_tokens=0) if constrained else MODES[mode]
    rest = {"steps": 10, "decoding": decoding, "choices": Choices.from_ids(LISTED, EOT) if constrained else None}
    prompts = torch.tensor([[7, 8, 9], [0, 3, 0], [5, 0, 0], [0, 0, 0]]) if prompted else torch.zeros(4, 0, dtype=torch.int64)
    together = model("generate", image_BCHW=picture, prompt_BL=prompts, key_B=keys, **rest)
    for b in range(4):
        alone = model("generate", image_BCHW=picture[b : b + 1], prompt_BL=prompts[b : b + 1], key_B=keys[b : b + 1], **rest)
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("mode", MODES)
def test_prompts_begin_the_texts_and_their_padding_changes_nothing(mode: str) -> None:
    """Prompts of different lengths, one of them empty and one with id 0 inside, against each alone without pads."""
    model, picture, keys = varied_model(), images(4), torch.arange(4)
    prompts = [(7, 8, 9, 10), (11, PAD, 12), (), (13,)]
    narrow, wide = (torch.tensor([[*p, *[PAD] * (width - len(p))] for p in prompts]) for width in (4, 40))
    rest = {"steps": 10, "decoding": MODES[mode]}
    ids = model("generate", image_BCHW=picture, prompt_BL=narrow, key_B=keys, **rest)
    assert torch.equal(model("generate", image_BCHW=picture, prompt_BL=wide, key_B=keys, **rest), ids)
    for b, prompt in enumerate(prompts):
        assert tuple(ids[b, : len(prompt)].tolist()) == prompt
        one = torch.tensor([prompt], dtype=torch.int64).reshape(1, len(prompt))
        alone = model("generate", image_BCHW=picture[b : b + 1], prompt_BL=one, key_B=keys[b : b + 1], **rest)
        assert torch.equal(alone[0], ids[b])
    assert torch.equal(ids[2], model("generate", image_BCHW=picture[2:3], key_B=keys[2:3], **rest)[0])


@pytest.mark.parametrize("kind", ["plain", "pooled"])
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(beams=3, length_penalty=1.0, min_tokens=2)], ids=["greedy", "beams"])
def test_prompted_texts_equal_the_slow_search(kind: str, decoding: Decoding) -> None:
    model, picture, prompts = varied_model(kind), images(3), [(7, PAD, 9), (11, 12), ()]
    prompt_BL = torch.tensor([[*p, *[PAD] * (5 - len(p))] for p in prompts])
    ids = model("generate", image_BCHW=picture, steps=7, decoding=decoding, prompt_BL=prompt_BL)
    for b, prompt in enumerate(prompts):
        found = slow_beam_search(Slow(model, picture[b]), 7, decoding, prompt)
        assert ids[b].tolist() == shown_as_row(found, 7)


def test_a_prompt_that_ends_or_fills_all_steps_is_all_there_is() -> None:
    prompts = torch.tensor([[5, EOT, 0, 0], [5, 6, 7, 8]])
    for decoding in (Decoding(), Decoding(beams=3), Decoding(sample=True)):
        ids = varied_model()("generate", image_BCHW=images(2), steps=4, decoding=decoding, prompt_BL=prompts, key_B=torch.arange(2))
        assert ids.tolist() == prompts.tolist()


@pytest.mark.parametrize("min_tokens", [0, 1, 4, 99])
def test_the_end_waits_for_min_tokens_after_the_prompt(min_tokens: int) -> None:
    model, picture = varied_model(eot=40.0), images(6)  # [EOT] as soon as allowed, for some at least
    prompts = torch.tensor([[5, 6], [5, 0], [0, 0]] * 2)
    for decoding in (Decoding(min_tokens=min_tokens), Decoding(beams=3, min_tokens=min_tokens)):
        ids = model("generate", image_BCHW=picture, steps=STEPS, decoding=decoding, prompt_BL=prompts)
        words = [len(trimmed(row)) - 1 - prompt for row, prompt in zip(ids, [2, 1, 0] * 2, strict=True) if EOT in row]
        assert all(number >= min_tokens for number in words)
        assert min_tokens == 99 or min(words) == min_tokens, "the bound has to be felt"
        assert min_tokens < 99 or not words


@pytest.mark.parametrize("decoding", MODES.values(), ids=MODES)
@pytest.mark.parametrize("eot", [-40.0, 40.0])
def test_the_number_of_model_calls_does_not_depend_on_the_data(decoding: Decoding, eot: float) -> None:
    """Every module that generation calls is called the same number of times, whether captions end at once or never."""
    model = varied_model(eot=eot)
    parts = {name: part for name, part in model.named_modules() if name.startswith("text_") and not list(part.children())}
    calls = dict.fromkeys(parts, 0)

    def count(name: str):
        def hook(*_) -> None:
            calls[name] += 1

        return hook

    hooks = [part.register_forward_hook(count(name)) for name, part in parts.items()]
    for choices in (None, Choices.from_ids([(5, EOT)], EOT)):
        calls.update(dict.fromkeys(parts, 0))
        chosen = dataclasses.replace(decoding, min_tokens=0)
        ids = model("generate", image_BCHW=images(3), steps=7, decoding=chosen, choices=choices, key_B=torch.arange(3))
        assert ids.shape == (3, 7) and ids.dtype == torch.int64
        once = {name for name, number in calls.items() if number == 1}
        none = {name for name, number in calls.items() if number == 0}
        assert {name.rsplit(".", 1)[-1] for name in once} == {"ln_other", "kv"}, "the image's keys and values, once"
        assert none == {"text_encoder.ln_final", "text_encoder.proj"}, "the text's global vector is not needed"
        assert {number for name, number in calls.items() if name not in once | none} == {7}
    for hook in hooks:
        hook.remove()


def test_pads_and_sot_are_never_generated() -> None:
    """Even where the model likes nothing better."""
    table = torch.zeros(50, 5, 9, 9)
    table[..., [PAD, SOT]] = 50.0
    for decoding in (Decoding(min_tokens=5), Decoding(beams=4, min_tokens=5), Decoding(sample=True, min_tokens=5)):
        captioner = Table(table)
        ids = generate(captioner, 5, table_text(9), decoding, key_B=torch.arange(50))
        assert ids.min() >= 3 and captioner.calls == 5
    assert not table[..., 2:].any(), "a captioner's logits are its own"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beams", 0),
        ("beams", 2.0),
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("length_penalty", math.nan),
        ("length_penalty", 11.0),
        ("min_tokens", -1),
    ],
)
def test_values_that_mean_nothing_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"decoding: {field} = .*: expected "):
        Decoding(**{field: value})


def test_beams_and_sampling_exclude_each_other() -> None:
    with pytest.raises(UserError, match="beams = 2: expected 1 with sample = True"):
        Decoding(beams=2, sample=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 13}, "13 steps: expected 1 to 12"),
        ({"steps": 0}, "0 steps: expected 1 to 12"),
        ({"steps": 4, "prompt_BL": torch.tensor([[3] * 5, [3] * 2 + [0] * 3])}, "a prompt of 5 tokens does not fit into 4 steps"),
        ({"steps": 4, "prompt_BL": torch.tensor([[3]])}, "one row for each of 2 images"),
        ({"steps": 4, "prompt_BL": torch.tensor([[3.0], [3.0]])}, "expected int64"),
        ({"steps": 4, "prompt_BL": torch.tensor([[3], [50]])}, "outside 0..49"),
        ({"steps": 4, "choices": Choices.from_ids([[50, EOT]], EOT)}, "the token 50; the model's vocabulary has 50"),
        (
            {"steps": 4, "prompt_BL": torch.tensor([[3, 4], [5, 0]]), "choices": Choices.from_ids([[5, 6, EOT]], EOT)},
            "a choice of 3 tokens after a prompt of 2 does not fit into 4 steps",
        ),
    ],
)
def test_what_does_not_fit_is_told(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        varied_model()("generate", image_BCHW=images(2), **arguments)


def test_the_whole_context_can_be_generated() -> None:
    inputs = random_inputs()
    ids = varied_model()("generate", image_BCHW=inputs["image_BCHW"], steps=12, decoding=Decoding(beams=2, min_tokens=12))
    assert ids.shape == (4, 12) and ids.min() >= 3
