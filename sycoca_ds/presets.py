"""Named starting points. Each names the command that runs it; every field can be overridden on the command line."""

from __future__ import annotations

from sycoca_ds.config import (
    DataConfig,
    DecoderConfig,
    ImageEncoderConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TextEncoderConfig,
    TrainConfig,
)

# deepspeed --num_accelerators 2 sycoca_ds/train.py --preset tiny --data.train DIR
# The demo's model: 48 px, 6 x 6 patches of 8 px; learns the demo world on 2 CPU cores in minutes. Three things differ from the
# paper's training. Weights start at 0.05: at this width N(0, 0.01) makes all image vectors alike and the contrast starts late
# (benchmarks/results/2026-11-23_tiny_init.md). Masking scores are centred: plain ones prefer the background in so short a run
# (docs/masking.md). And a batch of 64 gives more steps in the same time than the paper's 2048 would.
TINY = TrainConfig(
    model=ModelConfig(
        embed_dim=128,
        image=ImageEncoderConfig(image_size=48, patch_size=8, layers=4, width=128, heads=4),
        text=TextEncoderConfig(context_length=40, vocab_size=512, layers=3, width=128, heads=4),
        text_decoder=DecoderConfig(layers=2, width=128, heads=4),
        image_decoder=DecoderConfig(layers=2, width=128, heads=4),
        masking=MaskingConfig(similarity="centred_token_max"),
        init_std=0.05,
    ),
    data=DataConfig(lanes=16, window=512, workers=1),
    optim=OptimConfig(global_batch_size=64, steps=300, epochs=None, lr=2e-3, warmup_steps=60, betas=(0.9, 0.95)),
    run=RunConfig(out="runs/tiny", log_every=10, picture_every=100, checkpoint_every=100, validation_samples=256),
)

# deepspeed --hostfile HOSTS sycoca_ds/train.py --preset base --data.train DIR
# open_clip's coca_base shapes (12 layers, 768 wide) at 224 px with patches of 16 px; the image decoder like the text decoder.
BASE = TrainConfig(
    model=ModelConfig(embed_dim=512, text=TextEncoderConfig(vocab_size=64000)),
    run=RunConfig(out="runs/base"),
)

# deepspeed --hostfile hostfiles/a100x16 sycoca_ds/train.py --data.train DIR
# The paper prints only "930M". ViT-L/14 (24 x 1024), text encoder and text decoder 12 x 768, image decoder 12 x 1024 land on
# it within 1 % and fit open_clip's coca_ViT-L-14 towers; `python -m sycoca_ds.model 930m` prints the count.
SYCOCA_930M = TrainConfig(
    model=ModelConfig(
        embed_dim=768,
        image=ImageEncoderConfig(image_size=224, patch_size=14, layers=24, width=1024, heads=16),
        text=TextEncoderConfig(),
        text_decoder=DecoderConfig(),
        image_decoder=DecoderConfig(layers=12, width=1024, heads=16),
    ),
    run=RunConfig(out="runs/930m"),
)

PRESETS: dict[str, TrainConfig] = {"tiny": TINY, "base": BASE, "930m": SYCOCA_930M}
DEFAULT_PRESET = "930m"
