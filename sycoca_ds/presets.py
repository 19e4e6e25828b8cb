"""Named starting points. Each names the command that runs it; every field can be overridden on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sycoca_ds.config import (
    DataConfig,
    DecoderConfig,
    ImageEncoderConfig,
    LossConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TextEncoderConfig,
    TrainConfig,
)

# Masks of all sizes but open_clip's, by measurement (docs/masking.md, the rule for the presets): the paper's eq. 7 without words
# that say nothing, and both encoders pooled by the mean, so that the contrast trains the very products that eq. 7 takes; with [CLS]
# nothing does. `--preset paper-SIZE` has them as the paper prints them: [CLS], all tokens.
MASKING = MaskingConfig(similarity="token_max", words="content")
POOLING = "mean"

# deepspeed --num_accelerators 2 sycoca_ds/train.py --preset tiny --data.train DIR
# The demo's model: 48 px, 6 x 6 patches of 8 px; learns the demo world on 2 CPU cores in minutes. Three more things differ from the
# paper's training. Weights start at 0.05: at this width N(0, 0.01) makes all image vectors alike and the contrast starts late
# (benchmarks/results/2026-11-24_tiny_init.md). A batch of 64 gives more steps in the same time than the paper's 2048 would. And
# pictures are not cropped: a crop's other proportions blur which shape it is, and so few steps are not enough to see through
# that (benchmarks/results/2026-11-25_tiny_crop.md). The learning rate is a choice among three over three seeds
# (benchmarks/results/2026-11-24_tiny_lr.md). Nothing is sharded or recomputed for 3 M weights: ZeRO-3 alone
# makes a step 1.6 times as long on two ranks of a CPU (benchmarks/results/2026-11-26_engine_overhead.md).
TINY = TrainConfig(
    model=ModelConfig(
        embed_dim=128,
        image=ImageEncoderConfig(image_size=48, patch_size=8, layers=4, width=128, heads=4, pooling=POOLING),
        text=TextEncoderConfig(context_length=40, layers=3, width=128, heads=4, pooling=POOLING),
        text_decoder=DecoderConfig(layers=2, width=128, heads=4),
        image_decoder=DecoderConfig(layers=2, width=128, heads=4),
        masking=MASKING,
        init_std=0.05,
    ),
    data=DataConfig(lanes=16, window=512, workers=1, crop_scale=(1.0, 1.0)),
    optim=OptimConfig(global_batch_size=64, steps=400, epochs=None, lr=1.4e-3, warmup_steps=60, betas=(0.9, 0.95)),
    run=RunConfig(
        out="runs/tiny",
        ds_config="ds_configs/zero1.json",
        activation_checkpointing="none",
        log_every=10,
        picture_every=100,
        checkpoint_every=100,
        validation_samples=256,
    ),
)

# deepspeed --num_gpus 1 sycoca_ds/train.py --preset small --data.train DIR
# For one consumer GPU: ViT-S/16 (12 x 384), text encoder and text decoder 6 deep, image decoder 4, a batch of 1024 in four
# micro-batches. Learning rate of CLIP's smaller models (Radford et al., 2021, Table 20: ViT-B/32). ZeRO-1: with one rank there is
# nothing to shard. Memory: at most 10 GiB by an estimate (benchmarks/results/2026-11-25_step_cost.md); a smaller GPU takes more
# `optim.accumulation-steps`.
SMALL = TrainConfig(
    model=ModelConfig(
        embed_dim=384,
        image=ImageEncoderConfig(image_size=224, patch_size=16, layers=12, width=384, heads=6, pooling=POOLING),
        text=TextEncoderConfig(layers=6, width=384, heads=6, pooling=POOLING),
        text_decoder=DecoderConfig(layers=6, width=384, heads=6),
        image_decoder=DecoderConfig(layers=4, width=384, heads=6),
        masking=MASKING,
    ),
    data=DataConfig(lanes=64),
    optim=OptimConfig(global_batch_size=1024, accumulation_steps=4, lr=5e-4, warmup_steps=2000),
    run=RunConfig(out="runs/small", ds_config="ds_configs/zero1.json"),
)

# deepspeed --hostfile HOSTS sycoca_ds/train.py --preset base --data.train DIR
# open_clip's coca_base shapes (12 layers, 768 wide) at 224 px with patches of 16 px and the tokenizer's own vocabulary; the image
# decoder like the text decoder.
BASE = TrainConfig(
    model=ModelConfig(
        embed_dim=512,
        image=ImageEncoderConfig(pooling=POOLING),
        text=TextEncoderConfig(pooling=POOLING),
        masking=MASKING,
    ),
    run=RunConfig(out="runs/base"),
)

# deepspeed --hostfile hostfiles/a100x16 sycoca_ds/train.py --data.train DIR
# The paper prints only "930M". ViT-L/14 (24 x 1024), text encoder and text decoder 12 x 768, image decoder 12 x 1024 land on
# it within 1 % and fit open_clip's coca_ViT-L-14 towers; `python -m sycoca_ds.model 930m` prints the count.
SYCOCA_930M = TrainConfig(
    model=ModelConfig(
        embed_dim=768,
        image=ImageEncoderConfig(image_size=224, patch_size=14, layers=24, width=1024, heads=16, pooling=POOLING),
        text=TextEncoderConfig(pooling=POOLING),
        text_decoder=DecoderConfig(),
        image_decoder=DecoderConfig(layers=12, width=1024, heads=16),
        masking=MASKING,
    ),
    run=RunConfig(out="runs/930m"),
)

# open_clip's three CoCa, field by field (its model_configs/*.json), for its weights: docs/open_clip.md. The shapes are open_clip's,
# the training is ours: open_clip's initial weights are scaled by width, and its defaults are a learning rate of 5e-4, a decay of
# 0.2 and 10,000 warm-up steps. All three use CLIP's BPE, also coca_base, whose 64000 rows that tokenizer does not fill, and the
# padding mask that open_clip's weights were trained with; --model.text.attention-mask exact is the better one for training afresh.
_CLIP_TEXT = TextEncoderConfig(vocab_size=49408, sot_id=49406, eot_id=49407, attention_mask="open_clip")

# deepspeed --hostfile HOSTS sycoca_ds/train.py --preset coca_base --data.train DIR
# 440 M parameters: ViT-B at 288 px with patches of 18 px, no attention pooling: [CLS] and all 256 patches as they are.
OPEN_CLIP_BASE = TrainConfig(
    model=ModelConfig(
        family="coca",
        embed_dim=512,
        image=ImageEncoderConfig(image_size=288, patch_size=18),
        text=replace(_CLIP_TEXT, vocab_size=64000),
    ),
    run=RunConfig(out="runs/coca_base"),
)

# deepspeed --hostfile HOSTS sycoca_ds/train.py --preset coca_ViT-B-32 --data.train DIR
# 254 M parameters: 49 patches of 32 px, of which 256 learned queries make one global vector and 255 tokens for the decoder.
OPEN_CLIP_B_32 = TrainConfig(
    model=ModelConfig(
        family="coca",
        embed_dim=512,
        image=ImageEncoderConfig(image_size=224, patch_size=32, pooling="attention"),
        text=replace(_CLIP_TEXT, width=512, heads=8),
        text_decoder=DecoderConfig(width=512, heads=8),
    ),
    run=RunConfig(out="runs/coca_ViT-B-32"),
)

# deepspeed --hostfile HOSTS sycoca_ds/train.py --preset coca_ViT-L-14 --data.train DIR
# 638 M parameters: ViT-L/14 with the same pooling. Image encoder and text sizes are those of `930m`, whose [CLS] pooling differs.
OPEN_CLIP_L_14 = TrainConfig(
    model=ModelConfig(
        family="coca",
        embed_dim=768,
        image=ImageEncoderConfig(image_size=224, patch_size=14, layers=24, width=1024, heads=16, pooling="attention"),
        text=_CLIP_TEXT,
    ),
    run=RunConfig(out="runs/coca_ViT-L-14"),
)


def as_printed(config: TrainConfig) -> TrainConfig:
    """The same with the paper's masks: [CLS] in both encoders, eq. 7 over all tokens; in a run folder of its own."""
    model, out = config.model, config.run.out.replace("runs/", "runs/paper-")
    image, text = replace(model.image, pooling="cls"), replace(model.text, pooling="cls")
    model = replace(model, image=image, text=text, masking=MaskingConfig())
    return replace(config, model=model, run=replace(config.run, out=out))


SIZES = {"tiny": TINY, "small": SMALL, "base": BASE, "930m": SYCOCA_930M}
PRESETS: dict[str, TrainConfig] = {
    **SIZES,
    **{f"paper-{name}": as_printed(config) for name, config in SIZES.items()},
    "coca_base": OPEN_CLIP_BASE,
    "coca_ViT-B-32": OPEN_CLIP_B_32,
    "coca_ViT-L-14": OPEN_CLIP_L_14,
}
DEFAULT_PRESET = "930m"
VOCABULARIES = {"tiny": 512, "paper-tiny": 512}
"""Entries of the tokenizer that a preset is meant for, where that is not the default one (`data_pipeline tokenizer train`)."""


# deepspeed sycoca_ds/train.py --preset 930m --task caption --run.weights runs/930m --data.train DIR
# The recipe of open_clip's README for its CoCa, "Fine Tuning CoCa", the system that SyCoCa is built on: contrast 0, captioning 1,
# learning rate 1e-5 after 1,000 steps of warm-up, decay 0.1, batch 128, one epoch of a sample for every caption. Here a text of
# several captions gives another one each epoch, so 5 epochs of COCO are one of open_clip's. BLIP's (1e-5 without warm-up, decay
# 0.05, 384 px) is the other recipe in use. What differs: the gradient is clipped at 1, as in pretraining, where open_clip does not
# clip. The pictures stay as large as in pretraining, as open_clip's do.
def caption_recipe(config: TrainConfig) -> TrainConfig:
    """Cross entropy of the captions alone, on whole pictures: of family coca nothing is hidden."""
    optim = replace(
        config.optim,
        global_batch_size=128,
        steps=None,
        epochs=5.0,
        lr=1e-5,
        warmup_steps=1000,
        betas=(0.9, 0.98),
        weight_decay=0.1,
    )
    return replace(
        config,
        task="caption",
        model=replace(config.model, family="coca", fusion=False),
        loss=LossConfig(itc=0.0, ic=1.0, mim=0.0),
        optim=optim,
        data=replace(config.data, lanes=min(config.data.lanes, 128)),
        run=replace(config.run, out=f"{config.run.out}_caption", best_metric="validation/ic"),
    )


# deepspeed sycoca_ds/train.py --preset 930m --task vqa --run.weights runs/930m --data.train DIR --data.questions FILE
# BLIP's recipe (configs/vqa.yaml, on 16 GPUs): learning rate 2e-5, decay 0.05, 10 epochs, batch 16 x 16, torch's default betas and
# epsilon. What differs: 1,000 steps of warm-up, since the fusion's weights start fresh where BLIP's were pretrained; the preset's
# crop where BLIP takes half the picture at least, and no mirroring, since answers say "left"; pictures as large as in pretraining,
# where BLIP's have 480 px.
def vqa_recipe(config: TrainConfig) -> TrainConfig:
    """Answers to questions: a coca with fusion."""
    optim = replace(
        config.optim,
        global_batch_size=256,
        steps=None,
        epochs=10.0,
        lr=2e-5,
        warmup_steps=1000,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
    )
    return replace(
        config,
        task="vqa",
        model=replace(config.model, family="coca", fusion=True),
        loss=LossConfig(itc=0.0, ic=0.0, mim=0.0),
        optim=optim,
        run=replace(config.run, out=f"{config.run.out}_vqa", best_metric="validation/vqa_accuracy"),
    )


RECIPES: dict[str, Callable[[TrainConfig], TrainConfig]] = {"caption": caption_recipe, "vqa": vqa_recipe}
"""What --task makes of a pretraining configuration."""
