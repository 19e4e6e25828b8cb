"""Tokenizers as files: trained on the kept captions (`bpe`), or CLIP's (`clip_bpe`).

In: a verified folder, or CLIP's merges. Out: a tokenizer.json that `sycoca_ds.data.tokenizer` reads.
"""

from data_pipeline.tokenizer.bpe import new_tokenizer

__all__ = ["new_tokenizer"]
