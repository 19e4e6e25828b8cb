"""The losses as sums over ranks and micro-batches, against one batch on one rank; the captioning loss's memory; targets."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from sycoca_ds.config import MaskingConfig
from sycoca_ds.model import decoders
from sycoca_ds.model.image_encoder import patchify
from sycoca_ds.model.objectives import contrastive_loss, late_interaction_loss
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds import REPOSITORY
from tests.worlds.models.gradients import (
    BATCH,
    KINDS,
    LENGTHS,
    assert_same_gradients,
    backward_in_pieces,
    cut,
    model_of,
    of_whole_batch,
)
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs
from tests.worlds.processes.launching import finish, start_warm


@functools.cache
def whole(kind: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    return of_whole_batch(kind)


def test_every_score_is_among_them() -> None:
    scores = get_args(get_type_hints(MaskingConfig)["similarity"])
    assert len(scores) > 6 and {kind.masking.similarity for kind in KINDS.values()} == set(scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_micro_batches_equal_one_large_batch(pieces: int, kind: str) -> None:
    """Losses and every gradient, the logit scale's included (open_clip's accumulation gives it k times too large)."""
    model, (losses, gradients) = model_of(kind=kind), whole(kind)
    reports = backward_in_pieces(model, cut(random_inputs(BATCH, LENGTHS), pieces))
    assert_same_gradients(model, gradients)
    for name, value in losses.items():
        mean = sum(report[name].item() for report in reports) / pieces
        assert mean == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("family, pooling", [("clip", "cls"), ("coca", "attention"), ("sycoca", "attention"), ("sycoca", "mean")])
def test_micro_batches_of_other_models_equal_one_large_batch(family: str, pooling: str) -> None:
    inputs = random_inputs(BATCH, LENGTHS)
    model = model_of(family, pooling)
    model("train", **inputs)["loss"].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    backward_in_pieces(model, cut(inputs, 3))
    assert_same_gradients(model, expected)


def test_contrast_against_a_loop() -> None:
    torch.manual_seed(0)
    image, text = F.normalize(torch.randn(5, 7), dim=1), F.normalize(torch.randn(5, 7), dim=1)
    loss, report = contrastive_loss(image, text, torch.tensor(20.0))
    total, hits = 0.0, {"i2t_accuracy": 0, "t2i_accuracy": 0}
    for side, (mine, other) in zip(hits, ((image, text), (text, image)), strict=True):
        for b in range(5):
            logits = [20.0 * float(mine[b] @ other[c]) for c in range(5)]
            total -= logits[b] - float(torch.tensor(logits).logsumexp(0))
            hits[side] += max(range(5), key=logits.__getitem__) == b
    assert loss.item() == pytest.approx(total / 10, rel=1e-5)
    assert {name: round(value.item() * 5) for name, value in report.items()} == hits


@pytest.mark.parametrize("group", [1, 2, 3, 7, 100])
def test_late_interaction_against_a_loop(group: int) -> None:
    """FILIP's similarity both ways, each row against the pairs of its group in the order of the keys."""
    torch.manual_seed(0)
    patch, token = F.normalize(torch.randn(7, 4, 5), dim=2), F.normalize(torch.randn(7, 6, 5), dim=2)
    counted = torch.rand(7, 6) < 0.6
    counted[:, 0] = True
    key = torch.tensor([50, 3, 1 << 40, 7, 2, 90, 11])
    order, total, scale = sorted(range(7), key=lambda row: int(key[row])), 0.0, 20.0
    for b in range(7):
        start = order.index(b) // group * group
        members = order[start : start + group]
        i2t, t2i = [], []
        for m in members:
            words = [j for j in range(6) if counted[m, j]]
            i2t.append(scale * sum(max(float(patch[b, i] @ token[m, j]) for j in words) for i in range(4)) / 4)
            words = [j for j in range(6) if counted[b, j]]
            t2i.append(scale * sum(max(float(patch[m, i] @ token[b, j]) for i in range(4)) for j in words) / len(words))
        for logits in (i2t, t2i):
            total -= logits[members.index(b)] - float(torch.tensor(logits).logsumexp(0))
    found = late_interaction_loss(patch, token, counted, key, torch.tensor(scale), group)
    assert found.item() == pytest.approx(total / 14, rel=1e-5, abs=1e-6)


def test_late_interaction_trains_the_products_that_masks_are_chosen_by() -> None:
    """Patches and tokens get a gradient from it that the contrast of the two [CLS] does not give them."""
    model, inputs = model_of(kind="late"), random_inputs(BATCH, LENGTHS)
    kept: list[torch.Tensor] = []
    project = model.image_encoder.project_patches
    model.image_encoder.project_patches = lambda x: kept.append(project(x)) or kept[-1]
    report = model("train", **inputs)
    slope = torch.autograd.grad(report["loss"], kept[0])[0]
    assert (slope.abs().amax(dim=2) > 0).all()


def worker(rank: int, world_size: int, port: int, pieces: int, kind: str, out: str) -> None:
    """One rank of `test_ranks_equal_one_rank`: its share of the batch in `pieces` micro-batches, gradients averaged over ranks."""
    import torch.distributed as dist

    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    model = model_of(kind=kind)
    reports = backward_in_pieces(model, cut(cut(random_inputs(BATCH, LENGTHS), world_size)[rank], pieces))
    gradients = {name: p.grad for name, p in model.named_parameters()}
    losses = torch.stack([torch.stack([report[name].detach() for name in sorted(report)]) for report in reports]).mean(dim=0)
    for value in (*gradients.values(), losses):
        dist.all_reduce(value)
        value /= world_size
    if rank == 0:
        torch.save({"gradients": gradients, "losses": dict(zip(sorted(reports[0]), losses.tolist(), strict=True))}, out)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "world_size, pieces, kind",
    [(2, 1, "paper"), (3, 2, "paper"), (4, 1, "paper"), (3, 2, "presets"), (2, 1, "late"), (3, 2, "late")],
)
def test_ranks_equal_one_rank(world_size: int, pieces: int, kind: str, tmp_path: Path) -> None:
    """Losses and every gradient of W ranks, averaged as data parallelism averages them, against one rank with all samples; the
    captions differ in length, so a mean of rank means would be another number."""
    losses, gradients = whole(kind)
    script, out = tmp_path / "rank.py", tmp_path / "rank0.pt"
    # a group that outlives its end keeps gloo's threads, which abort a process now and then while it exits
    script.write_text(
        f"import os, sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom pathlib import Path\n"
        f"from {__name__} import worker\n"
        "worker(*(int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE', 'MASTER_PORT')), int(sys.argv[2]), *sys.argv[3:])\n"
        "assert not [t for t in Path('/proc/self/task').iterdir() if 'gloo' in (t / 'comm').read_text()]\n"
    )
    status, output = finish(start_warm([str(pieces), kind, str(out)], ranks=world_size, script=script))
    assert status == 0, output[-3000:]
    found = torch.load(out, weights_only=True)
    model = model_of(kind=kind)
    for name, p in model.named_parameters():
        p.grad = found["gradients"][name]
    assert_same_gradients(model, gradients)
    for name, value in losses.items():
        assert found["losses"][name] == pytest.approx(value, rel=1e-5), name


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most numbers of any tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return out


@pytest.mark.parametrize("at_once", [1, 50 * 7, 50 * 35, 1 << 26])
def test_captioning_in_pieces_is_the_plain_cross_entropy(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients do not depend on the pieces; in pieces, no tensor of all logits is ever made."""
    monkeypatch.setattr(decoders, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    head, x = decoders.VocabularyHead(16, 50), torch.randn(35, 16, requires_grad=True)
    target = torch.randint(0, 50, (35,))
    expected = F.cross_entropy(x @ head.weight.T, target, reduction="sum")
    gradients = torch.autograd.grad(expected, [x, head.weight])
    with LargestTensor() as largest:
        total = head(x, target)
        found = torch.autograd.grad(total, [x, head.weight])
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    most = max(50, at_once) if at_once < 35 * 50 else 35 * 50
    assert largest.numbers == max(most, 50 * 16)  # the weight's gradient has 50 * 16


def test_in_bf16_many_pieces_give_a_gradient_as_exact_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With products in bf16, as a GPU has them. Summed in bf16, these 64 pieces are off by 4.6 times as much as one."""
    monkeypatch.setattr(decoders, "multiplies_in_float32", lambda x: False)
    torch.manual_seed(0)
    head, x = decoders.VocabularyHead(32, 64).bfloat16(), torch.randn(1024, 32, dtype=torch.bfloat16)
    target = torch.randint(0, 64, (1024,))
    weight = head.weight.detach().double().requires_grad_()
    F.cross_entropy(x.double() @ weight.T, target, reduction="sum").backward()
    errors = []
    for rows in (1024, 16):
        monkeypatch.setattr(decoders, "LOGITS_AT_ONCE", 64 * rows)
        (found,) = torch.autograd.grad(head(x, target), [head.weight])
        assert found.dtype == torch.bfloat16
        errors.append(((found.double() - weight.grad).norm() / weight.grad.norm()).item())
    assert errors[1] < 1.5 * errors[0] < 0.01


def test_captioning_never_holds_the_logits_of_padding() -> None:
    """4 captions with 24 labels of 44 places: in a training step nothing has a row of the vocabulary for every place."""
    text = dataclasses.replace(SMALL_MODEL.text, vocab_size=5000)
    model = SyCoCa(dataclasses.replace(SMALL_MODEL, family="coca", text=text), seed=0)
    with LargestTensor() as largest:
        model("train", **random_inputs())["loss"].backward()
    labels = sum(length - 1 for length in (12, 5, 8, 3))
    assert largest.numbers == max(labels * 5000, 5000 * 32) < 44 * 5000


def test_normalised_target_against_a_loop() -> None:
    """MAE's: (pixel - patch mean) / sqrt(unbiased patch variance + 1e-6); pictures are put back in pixels."""
    config = dataclasses.replace(SMALL_MODEL, masking=MaskingConfig(target="normalised_pixels"))
    model, inputs = SyCoCa(config, seed=1).eval(), random_inputs()
    with torch.no_grad():
        out = model("reconstruct", **inputs)
    patches = patchify(inputs["image_BCHW"], 6)
    assert torch.equal(out["target_BNP"], patches)
    for b in range(4):
        errors = []
        for n in range(16):
            if not out["hidden_BN"][b, n]:
                continue
            values = patches[b, n].double().tolist()
            mean = sum(values) / len(values)
            deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1) + 1e-6) ** 0.5
            shown = [(p - mean) / deviation for p in out["pixels_BNP"][b, n].double().tolist()]
            errors.append(sum(abs(s - (v - mean) / deviation) for s, v in zip(shown, values, strict=True)) / len(values))
        assert out["l1_B"][b].item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert model("train", **inputs)["mim"].item() == pytest.approx(out["l1_B"].mean().item(), rel=1e-5)


def test_asking_for_random_masks_is_having_configured_them() -> None:
    """`mask_warmup` asks for random masks at the first steps: the same losses as `mask_by = random`, other than attention's."""
    inputs = random_inputs()
    by_attention, by_noise = (
        SyCoCa(dataclasses.replace(SMALL_MODEL, masking=MaskingConfig(mask_by=m)), seed=1) for m in ("attention", "random")
    )
    asked, configured = by_attention("train", **inputs, mask_by="random"), by_noise("train", **inputs)
    assert all(torch.equal(asked[name], configured[name]) for name in configured)
    assert by_attention("train", **inputs)["mim"] != asked["mim"]
