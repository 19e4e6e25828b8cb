"""Floating-point operations of one sample's forward pass, counted by formula: 2 per multiply-add of matrix products,
attention scores and mixing included; norms, softmax and activations left out, as usual for MFU."""

from __future__ import annotations

from sycoca_ds.config import ModelConfig, hidden_count


def _self_block(tokens: int, width: int, causal: bool) -> int:
    """qkv, output and MLP projections 24 n d^2; scores and mixing 4 n^2 d, half of it under a causal mask."""
    return 24 * tokens * width**2 + 4 * tokens * tokens * width // (2 if causal else 1)


def _cross_block(queries: int, keys: int, width: int, key_width: int) -> int:
    """Query, output and MLP 20 n d^2; keys and values 4 m d d'; scores and mixing 4 n m d."""
    return 20 * queries * width**2 + 4 * keys * key_width * width + 4 * queries * keys * width


def forward_flops(model: ModelConfig, text_tokens: int | None = None) -> dict[str, int]:
    """Forward FLOPs of one training sample by part. A training step costs three times their sum, four times the blocks'
    share where activations are recomputed.

    Args:
        text_tokens: L, tokens of the padded caption; default the context length. The head is counted at all of them.
    """
    image, text, masking = model.image, model.text, model.masking
    n, length = image.patches, text_tokens or text.context_length

    def encode(patches: int) -> int:
        return 2 * patches * image.patch_values * image.width + image.layers * _self_block(patches + 1, image.width, False)

    def project_to_shared(rows: int, width: int) -> int:
        return 2 * rows * width * model.embed_dim

    flops = {
        "image encoder, all patches": encode(n) + project_to_shared(1, image.width),
        "text encoder": text.layers * _self_block(length + 1, text.width, True) + project_to_shared(1, text.width),
    }
    masked = model.family == "sycoca"
    seen = n - (hidden_count(n, masking.low_ratio) if masked else 0)
    kept = n - hidden_count(n, masking.high_ratio)
    if masked and masking.mask_by == "attention":
        flops["attentive scores"] = (
            project_to_shared(n, image.width) + project_to_shared(length, text.width) + 2 * n * length * model.embed_dim
        )
    if masked and masking.mask_at == "input":
        passes = ([seen] if seen < n else []) + ([kept] if model.reconstructs else [])
        flops["image encoder, masked passes"] = sum(map(encode, passes))
    if model.captions:
        width = model.text_decoder.width
        layer = _self_block(length - 1, width, True) + _cross_block(length - 1, seen, width, image.width)
        flops["text decoder"] = model.text_decoder.layers * layer + 2 * (length - 1) * width * text.vocab_size
    if model.reconstructs:
        decoder = model.image_decoder
        layer = _self_block(n, decoder.width, False)
        if masking.mim == "text_guided":
            layer += _cross_block(n, length, decoder.width, text.width)
        flops["image decoder"] = (
            decoder.layers * layer + 2 * kept * image.width * decoder.width + 2 * n * decoder.width * image.patch_values
        )
    return flops
