"""SyCoCa-DS: pretraining of SyCoCa (arXiv 2401.02137), CoCa and CLIP on DeepSpeed, from catalogue to tables."""

__version__ = "0.1.0"
