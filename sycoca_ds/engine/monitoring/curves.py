"""What the numbers of a run are called: in metrics.jsonl, as curves in TensorBoard, on the board's first page, on the console."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

PARTS = ("image_encoder", "text_encoder", "text_decoder", "image_decoder", "fusion", "logit_scale")
"""Parts of the model whose gradients are measured apart; the last is one number, `SyCoCa.logit_scale`."""
CONTROLS = ("", "other_", "no_text_")
"""Of a number of the masks: under the own caption, under another picture's, under none."""
FOUND = ("named_over_unnamed", "named_over_rest", "objects_over_background", "pointing", "word_iou")
"""What masks find where regions are known (eval/masking/yardstick.py)."""
GAPS = tuple(f"{mask}gap_{kind}" for mask in ("", "random_") for kind in ("named", "unnamed", "background", "named_background"))
"""TG-MIM's gaps by what a patch shows (eval/masking/gaps.py)."""
RECALLS = tuple(f"{way}_r{k}" for k in (1, 5, 10) for way in ("i2t", "t2i"))
LOSSES = ("loss", "itc", "late_interaction", "ic", "mim", "vqa")
ANSWERED = ("vqa_accuracy", "vqa_other_picture", "vqa_majority")
"""Of a validation on questions: the model's answers, those it gives to another picture, the most frequent answer."""

TAGS = {
    "loss": "loss/total",
    "itc": "loss/itc",
    "late_interaction": "loss/late_interaction",
    "ic": "loss/ic",
    "mim": "loss/mim",
    "vqa": "loss/vqa",
    "validation/vqa": "loss_validation/vqa",
    **{f"validation/{name}": f"validation_questions/{name}" for name in ANSWERED},
    "validation/loss": "loss_validation/total",
    "validation/itc": "loss_validation/itc",
    "validation/late_interaction": "loss_validation/late_interaction",
    "validation/ic": "loss_validation/ic",
    "validation/mim": "loss_validation/mim",
    "masking/caption_overlap": "masking/caption_overlap",
    "masking/caption_ignored": "masking/caption_ignored",
    "masking/no_text_overlap": "masking/no_text_overlap",
    "masking/position_overlap": "masking/position_overlap",
    "masking/position_bias": "masking/position_bias",
    "masking/chance_overlap": "masking/chance_overlap",
    "masking/own_caption_higher": "masking/own_caption_higher",
    "masking/chance_higher": "masking/chance_higher",
    "masking/score_std": "masking/score_std",
    "masking/score_range": "masking/score_range",
    **{f"masking/{control}{name}": f"masking_regions/{control}{name}" for name in FOUND for control in CONTROLS},
    "masking/named_over_unnamed_gain": "masking_regions/named_over_unnamed_gain",
    "masking/chance_gain": "masking_regions/chance_gain",
    "masking/chance_pointing": "masking_regions/chance_pointing",
    "masking/chance_word_iou": "masking_regions/chance_word_iou",
    **{f"masking/{name}": f"masking_regions/{name}" for name in GAPS},
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    **{f"grad_norm/{part}": f"optimizer_parts/grad_norm_{part}" for part in PARTS},
    "logit_scale": "optimizer/logit_scale",
    "skipped_steps": "optimizer/skipped_steps",
    **{f"validation/{name}": f"retrieval/{name}" for name in RECALLS},
    **{f"validation/chance_{name}": f"retrieval/chance_{name}" for name in RECALLS},
    "epoch": "samples/epoch",
    "samples": "samples/seen",
    "stand_ins": "samples/stand_ins",
    "samples_per_second": "speed/samples_per_second",
    "samples_per_second_per_device": "speed/samples_per_second_per_device",
    "model_tflops_per_second": "speed/model_tflops_per_second",
    "mfu": "speed/mfu",
    "data_wait": "speed/data_wait_share",
    "slowest_device": "speed/slowest_device",
    "slowest_device_rank": "speed/slowest_device_rank",
    "slowest_loader_rank": "speed/slowest_loader_rank",
    "memory_gib": "speed/max_memory_gib",
    "host_memory_gib": "speed/host_memory_gib",
    "checkpoint_seconds": "speed/checkpoint_seconds",
    "validation_seconds": "speed/validation_seconds",
    "i2t_accuracy": "train_accuracy/i2t",
    "t2i_accuracy": "train_accuracy/t2i",
    "validation/i2t_accuracy": "validation_accuracy/i2t",
    "validation/t2i_accuracy": "validation_accuracy/t2i",
}
"""Key in metrics.jsonl -> TensorBoard tag. TensorBoard sorts groups by name and opens the first two: no group may come before
`loss` and `loss_validation`."""

CLOCK = (
    "samples_per_second",
    "samples_per_second_per_device",
    "model_tflops_per_second",
    "mfu",
    "data_wait",
    "slowest_device",
    "slowest_device_rank",
    "slowest_loader_rank",
    "memory_gib",
    "host_memory_gib",
    "checkpoint_seconds",
    "validation_seconds",
)
"""Keys whose values depend on the machine and on what else it does; all others are the same in every run of the same command."""

OF_REGIONS, OF_ANSWERS = "Do the masks find what is named?", "Does it answer?"
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Does it learn?": {
        "loss, weighted sum": ("loss", "validation/loss"),
        "contrast (ITC)": ("itc", "validation/itc"),
        "captioning (IC), nats a token": ("ic", "validation/ic"),
        "reconstruction (TG-MIM), L1": ("mim", "validation/mim"),
        "retrieval R@1, %, beside chance": ("validation/i2t_r1", "validation/t2i_r1", "validation/chance_t2i_r1"),
        "right pair first in the batch, share": ("i2t_accuracy", "t2i_accuracy", "validation/i2t_accuracy"),
    },
    OF_ANSWERS: {
        "cross entropy of the answers": ("vqa", "validation/vqa"),
        "answers right, %: its own, on another picture, the most frequent": tuple(f"validation/{name}" for name in ANSWERED),
    },
    "Do the masks know the caption?": {
        "overlap of masks: other caption, other picture, chance": (
            "masking/caption_overlap",
            "masking/position_overlap",
            "masking/chance_overlap",
        ),
        "0 = chance, 1 = caption ignored, all pictures alike": ("masking/caption_ignored", "masking/position_bias"),
        "own caption scores higher, share, beside coin tosses": ("masking/own_caption_higher", "masking/chance_higher"),
        "spread of scores within a picture": ("masking/score_std", "masking/score_range"),
    },
    "Do the masks find what is named?": {
        "named over unnamed objects, AUC: own caption, another's, none": tuple(
            f"masking/{control}named_over_unnamed" for control in CONTROLS
        ),
        "what the own caption adds to another's, beside what chance exceeds once in forty times": (
            "masking/named_over_unnamed_gain",
            "masking/chance_gain",
        ),
        "named over everything else, AUC: own caption, another's, none": tuple(
            f"masking/{control}named_over_rest" for control in CONTROLS
        ),
        "objects over background, AUC": ("masking/objects_over_background", "masking/other_objects_over_background"),
        "pointing by a phrase's words, share, beside chance": (
            "masking/pointing",
            "masking/other_pointing",
            "masking/no_text_pointing",
            "masking/chance_pointing",
        ),
        "IoU of a phrase's words and its region, beside chance": (
            "masking/word_iou",
            "masking/other_word_iou",
            "masking/no_text_word_iou",
            "masking/chance_word_iou",
        ),
        "TG-MIM's gap by what a patch shows, %": ("masking/gap_named", "masking/gap_unnamed", "masking/gap_background"),
        "the same with random masks, %": (
            "masking/random_gap_named",
            "masking/random_gap_unnamed",
            "masking/random_gap_background",
        ),
    },
    "Is it stable?": {
        "gradient norm before clipping": ("grad_norm",),
        "gradient norm by part": tuple(f"grad_norm/{part}" for part in PARTS),
        "learning rate": ("lr",),
        "logit scale, at most 100": ("logit_scale",),
        "steps skipped so far": ("skipped_steps",),
    },
    "Is it fast?": {
        "samples a second": ("samples_per_second",),
        "samples a second and device": ("samples_per_second_per_device",),
        "model TFLOP/s, all devices": ("model_tflops_per_second",),
        "MFU and data wait, shares": ("mfu", "data_wait"),
        "slowest device, times the median one's seconds": ("slowest_device",),
        "memory, GiB": ("memory_gib", "host_memory_gib"),
        "seconds a checkpoint, a validation": ("checkpoint_seconds", "validation_seconds"),
    },
    "How far is it?": {
        "epoch": ("epoch",),
        "samples that could not be read": ("stand_ins",),
    },
}
"""Page -> chart -> keys of its curves, in the order of the Custom Scalars tab."""


def tag_of(key: str) -> str:
    """The curve that a key of metrics.jsonl is drawn as."""
    return TAGS.get(key) or (f"samples/{key}" if key.startswith("epoch_of_") else key)


def layout(regions: bool, unasked: Collection[str] = (), answers: bool = False) -> dict[str, dict[str, list]]:
    """`CHARTS` as `torch.utils.tensorboard` takes it. A chart's tags are regular expressions that match from the beginning.

    Args:
        regions: whether the run knows regions of its validation pictures; without them the page of what needs them is left out.
        unasked: numbers of `FOUND` and `GAPS` that this run cannot give; a chart of one of them is left out.
        answers: whether the run learns to answer questions; another's board has no page of that.
    """
    shown = {OF_REGIONS: regions, OF_ANSWERS: answers}
    empty = {f"masking/{name}" for name in unasked}
    empty |= {"masking/named_over_unnamed_gain"} if "named_over_unnamed" in unasked else set()
    return {
        page: {title: ["Multiline", [f"{tag_of(key)}$" for key in keys]] for title, keys in charts.items() if not empty & set(keys)}
        for page, charts in CHARTS.items()
        if shown.get(page, True)
    }


def format_record(step: int, steps: int, record: dict[str, Any]) -> str:
    """The console's line for one report."""
    losses = " ".join(f"{name} {record[name]:.3f}" for name in LOSSES if name in record)
    scale = f"scale {record['logit_scale']:.1f} " if "logit_scale" in record else ""
    mfu = f", MFU {100 * record['mfu']:.1f} %" if "mfu" in record else ""
    return (
        f"step {step}/{steps} {losses} | {scale}grad {record['grad_norm']:.2f} lr {record['lr']:.1e} | "
        f"{record['samples_per_second']:.0f} samples/s{mfu}, data wait {100 * record['data_wait']:.1f} %"
    )


def format_note(record: dict[str, Any]) -> str:
    """The same beside a bar, where there is little room."""
    return f"loss {record['loss']:.3f}, {record['samples_per_second']:.0f} samples/s"


def format_validation(step: int, numbers: dict[str, float]) -> str:
    """The console's line for one validation."""
    found = {name.removeprefix("validation/"): value for name, value in numbers.items()}
    losses = " ".join(f"{name} {found[name]:.3f}" for name in LOSSES if name in found)
    if "vqa_accuracy" in found:
        return (
            f"validation at step {step}: {losses} | answers right {found['vqa_accuracy']:.1f} %, on another picture "
            f"{found['vqa_other_picture']:.1f} %, the most frequent answer {found['vqa_majority']:.1f} %"
        )
    line = (
        f"validation at step {step}: {losses} | R@1 image to text {found['i2t_r1']:.1f} %, text to image {found['t2i_r1']:.1f} % "
        f"(chance {found['chance_t2i_r1']:.1f} %)"
    )
    if "masking/caption_overlap" in numbers:
        line += (
            f" | masks under another caption overlap by {numbers['masking/caption_overlap']:.3f} (chance "
            f"{numbers['masking/chance_overlap']:.3f}, all the same 1), own caption scores higher in "
            f"{100 * numbers['masking/own_caption_higher']:.0f} % (chance 50)"
        )
    if "masking/named_over_unnamed" in numbers:
        line += (
            f" | named over unnamed objects {numbers['masking/named_over_unnamed']:.3f}, under another caption "
            f"{numbers['masking/other_named_over_unnamed']:.3f} (chance 0.5)"
        )
    return line
