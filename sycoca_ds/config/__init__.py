"""The run's typed configuration. Every field says what it means, its unit, and where its default comes from.

In: nothing. Out: frozen dataclasses, `TrainConfig` the whole, and what of them is refused. Everything is imported from here.

Sizes live here and flow into DeepSpeed's configuration; `ds_configs/*.json` hold sharding policy only. Presets are in
`sycoca_ds/presets.py`, command-line and file parsing in `sycoca_ds/options.py`.
"""

from sycoca_ds.config.checks import check_ema_decay, check_model, check_run_folder, check_tokenizer_file, check_weights_there
from sycoca_ds.config.model import (
    COMMON_WORDS,
    DecoderConfig,
    ImageEncoderConfig,
    MaskingConfig,
    ModelConfig,
    TextEncoderConfig,
    hidden_count,
    with_vocabulary,
)
from sycoca_ds.config.run import DataConfig, GuardConfig, LossConfig, OptimConfig, RunConfig, TrainConfig, WatchConfig

__all__ = [
    "COMMON_WORDS",
    "DataConfig",
    "DecoderConfig",
    "GuardConfig",
    "ImageEncoderConfig",
    "LossConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TextEncoderConfig",
    "TrainConfig",
    "WatchConfig",
    "check_ema_decay",
    "check_model",
    "check_tokenizer_file",
    "check_run_folder",
    "check_weights_there",
    "hidden_count",
    "with_vocabulary",
]
