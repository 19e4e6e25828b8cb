"""The forward pass of one micro-batch, piece by piece in the order it runs, and the bytes that each keeps for the backward pass.

Counted are the tensors that autograd saves, each storage once: a linear layer its input, a norm its input and statistics, GELU its
input, attention queries, keys, values, output and one number a row and head (fused kernels never hold the scores: Korthikanti et
al., 2022, equation 2, less the dropout masks and the quadratic term). A recomputed block keeps its input alone (their "full"
recomputation) and is held whole again while its backward pass runs.

Rows are tokens of the whole micro-batch; widths as in parameters.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sycoca_ds.capacity.parameters import Part, numel, parts
from sycoca_ds.config import ModelConfig, hidden_count

LOGITS_AT_ONCE = 1 << 26
"""Of `sycoca_ds.model.decoders`, which imports torch; a test holds them equal."""
IN_FLIGHT = 6
"""Gradients inside a block's backward pass, in units of its input: five at GELU (its two sides of four less the freed product, and
the residual's), one to spare."""


@dataclass(frozen=True)
class Kernels:
    """What layers keep, by precision and device."""

    bytes: int
    """Of an activation: 2 in bf16, 4 in float32."""
    casts: bool = False
    """bf16 on a CPU, where `blocks.attend` computes in float32 and `blocks.LayerNorm` keeps the normalised input, too."""

    def tensor(self, rows: int, width: int) -> int:
        return rows * width * self.bytes

    def statistics(self, rows: int, width: int) -> int:
        """What a norm keeps beside its input and the output, which the next layer keeps."""
        return self.tensor(rows, width) + 4 * rows if self.casts else 8 * rows

    def norm(self, rows: int, width: int) -> int:
        """A norm whose output a linear layer keeps; its input is counted where it comes from."""
        return self.tensor(rows, width) + self.statistics(rows, width)

    def attention(self, queries: int, keys: int, width: int, heads: int) -> int:
        """Queries, keys, values, output, and the logarithm of each row's sum (float32)."""
        kept = (2 * queries + 2 * keys) * width
        return (4 * kept + self.tensor(queries, width) if self.casts else kept * self.bytes) + 4 * queries * heads

    def mlp(self, rows: int, width: int) -> int:
        """Both sides of GELU, four times as wide."""
        return 2 * self.tensor(rows, 4 * width)

    def self_block(self, rows: int, width: int, heads: int) -> int:
        residuals = 2 * self.tensor(rows, width)
        return residuals + 2 * self.norm(rows, width) + self.attention(rows, rows, width, heads) + self.mlp(rows, width)

    def cross_block(self, rows: int, width: int, heads: int, keys: int, other_width: int) -> int:
        """The other modality's tokens themselves are counted once, where they come from."""
        residuals = 2 * self.tensor(rows, width)
        attention = self.norm(keys, other_width) + self.attention(rows, keys, width, heads)
        return residuals + 2 * self.norm(rows, width) + attention + self.mlp(rows, width)


@dataclass(frozen=True)
class Piece:
    """One block, or what runs between blocks. Bytes are those of the whole micro-batch."""

    part: str
    """Whose weights it uses."""
    what: str
    weights: str = ""
    """Names its weights; pieces of one name share them. Empty: it has none."""
    numbers: int = 0
    """How many weights these are."""
    kept: int = 0
    """From here to its backward pass."""
    in_forward: int = 0
    """On top of `kept` while it runs."""
    in_backward: int = 0
    """On top of `kept` while its backward pass runs."""
    kind: str = "activations"
    """The line of the report that it counts under: activations, logits or contrast."""
    recomputed: bool = False


Checkpointing = Mapping[str, int]
"""Part -> k: every k-th of its layers is recomputed in the backward pass, 0 none, as `blocks.recomputes` has it."""


@dataclass(frozen=True)
class Work:
    """One micro-batch on one rank."""

    model: ModelConfig
    micro_batch_size: int
    global_batch_size: int
    kernels: Kernels
    checkpointing: Checkpointing = field(default_factory=dict)
    whole_contrast: bool = True
    """Whether the contrast is computed inside; with several micro-batches a step it is computed before."""
    late_interaction: bool = False
    """Whether patches and tokens are contrasted, too."""
    caption_tokens: float | None = None
    """Real tokens of a caption on average; None: the context length, the most. Captions are computed without padding."""

    @property
    def tokens(self) -> int:
        """Of all captions of the micro-batch."""
        each = self.model.text.context_length if self.caption_tokens is None else self.caption_tokens
        return round(self.micro_batch_size * each)


def _blocks(work: Work, part: str, what: str, weights: Part, pair: list[tuple[int, int, int]]) -> Iterator[Piece]:
    """A part's blocks. `pair`: (rows, width, bytes kept without recomputation) of each block of a layer."""
    every = work.checkpointing.get(part, 0)
    for number, numbers in enumerate(weights.block_numbers):
        layer, place = divmod(number, len(pair))
        rows, width, whole = pair[place]
        again = every > 0 and layer % every == 0
        boundary, in_flight = work.kernels.tensor(rows, width), IN_FLIGHT * work.kernels.tensor(rows, width)
        yield Piece(
            part,
            what,
            weights=f"{part}, block {number}",
            numbers=numbers,
            kept=boundary if again else whole,
            in_backward=in_flight + (whole - boundary if again else 0),
            recomputed=again,
        )


def _encode_image(work: Work, part: Part, what: str, images: int, patches: int) -> Iterator[Piece]:
    """One pass of the image encoder over `images` pictures of `patches` patches; the last output is counted by what reads it."""
    k, image = work.kernels, work.model.image
    rows = images * (patches + 1)
    kept = k.tensor(images * patches, image.patch_values) + k.tensor(rows, image.width) + k.statistics(rows, image.width)
    first = "image encoder, first"
    yield Piece("image encoder", f"{what}: embedding", first, numel(part.first), kept, in_backward=2 * k.tensor(rows, image.width))
    whole = k.self_block(rows, image.width, image.heads)
    yield from _blocks(work, "image encoder", what, part, [(rows, image.width, whole)])


def _read_image(
    work: Work, part: Part, what: str, images: int, patches: int, last_output: int | None = None, captioned: bool = True
) -> Piece:
    """Norm or pooling behind the blocks.

    Args:
        last_output: bytes of the blocks' output, None if it is this pass's own.
        captioned: the text decoder reads the patches. If it does not, a mean of them is all that is kept of what comes out.
    """
    k, image, e = work.kernels, work.model.image, work.model.embed_dim
    rows = images * (patches + 1)
    kept = k.tensor(rows, image.width) if last_output is None else last_output
    if image.pooling == "attention":
        queries, once = images * image.pooling_queries, image.pooling_queries
        kept += k.norm(rows, image.width) + k.attention(queries, rows, e, image.pooling_heads)
        kept += k.tensor(once, 2 * e) + k.tensor(queries, e) + k.norm(queries, e)  # queries in, what comes out, normalised
        kept -= 0 if k.casts else k.tensor(queries - once, e)  # projected for all pictures together
    elif image.pooling == "mean" and not captioned:
        kept += k.statistics(rows, image.width) + k.tensor(images, image.width)
    else:
        kept += k.norm(rows, image.width)
    return Piece("image encoder", f"{what}: read", "image encoder, read", numel(part.read), kept, in_backward=kept)


def _contrast(work: Work, image: Part, text: Part) -> Iterator[Piece]:
    """Both projections and the contrast of local rows with all columns, float32 (`objectives.contrastive_loss`)."""
    k, e, b, model = work.kernels, work.model.embed_dim, work.micro_batch_size, work.model
    kept = 16 * b * e + (k.norm(b, model.text.width) if model.text.pooling == "cls" else k.tensor(b, model.text.width))
    yield Piece("image encoder", "projection", "image encoder, project", numel(image.project), 8 * b * e)
    yield Piece("text encoder", "projection", "text encoder, project", numel(text.project), kept)
    if work.whole_contrast:
        logits, gathered = 2 * 4 * b * work.global_batch_size, 2 * 4 * work.global_batch_size * e
        yield Piece("contrast", "logits", "logit scale", 1, logits + gathered, logits, logits + gathered, kind="contrast")


def _late_interaction(work: Work) -> Piece:
    """Features of patches and tokens in the shared space, float32, and their products a group's member at a time
    (`objectives.late_interaction_loss`), computed again in the backward pass. Other ranks' features come whole."""
    k, model, b, e = work.kernels, work.model, work.micro_batch_size, work.model.embed_dim
    image, text = model.image, model.text
    patches, tokens, whole = b * image.patches, work.tokens, b * text.context_length
    kept = k.norm(patches, model.image_token_width) + k.norm(tokens, text.width) + 2 * 4 * (patches + tokens) * e
    others = 0
    if work.whole_contrast:
        others = (work.global_batch_size // b - 1) * 4 * (patches + whole) * e
    products = 2 * 4 * patches * text.context_length if work.whole_contrast else 0
    member = 2 * 4 * (patches + whole) * e if work.whole_contrast else 0
    return Piece(
        "late interaction",
        "patches and tokens",
        "late interaction",
        kept=kept + others,
        in_forward=member + products,
        in_backward=2 * member + products,
    )


def _scores(work: Work) -> Piece:
    """Attentive scores without gradient (`SyCoCa._scores`): projected patches, twice, and similarities, twice; float32."""
    model, b = work.model, work.micro_batch_size
    if model.masking.similarity == "cross_attention":
        # a layer's weights by head, twice, and those of all layers, beside the block itself
        width, heads, layers = model.text_decoder.width, model.text_decoder.heads, model.text_decoder.layers
        rows = b * (model.text.context_length - 1)
        weights = 4 * rows * model.image.patches * (2 * heads + layers)
        return Piece("masking", "attentive scores", in_forward=weights + work.kernels.tensor(rows, 10 * width))
    tokens = {"global": 1, "saliency": 1}.get(model.masking.similarity, model.text.context_length)
    return Piece("masking", "attentive scores", in_forward=8 * b * model.image.patches * (model.embed_dim + tokens))


def _caption(work: Work, part: Part, keys: int) -> Iterator[Piece]:
    """The text decoder on `keys` image tokens a picture, and the vocabulary's loss at labelled places (`VocabularyHead`)."""
    k, model, b = work.kernels, work.model, work.micro_batch_size
    width, heads, rows, other = model.text_decoder.width, model.text_decoder.heads, work.tokens - b, model.image_token_width
    pair = [k.self_block(rows, width, heads), k.cross_block(rows, width, heads, b * keys, other)]
    yield from _blocks(work, "text decoder", "blocks", part, [(rows, width, whole) for whole in pair])
    kept = k.tensor(rows, width) + k.statistics(rows, width)
    vocabulary = model.text.vocab_size
    head = vocabulary * width
    yield Piece(
        "text decoder", "last norm", "text decoder, norm", numel(part.read) - head, kept, in_backward=2 * k.tensor(rows, width)
    )
    at_once = max(1, LOGITS_AT_ONCE // vocabulary)
    logits = 4 * min(rows, at_once) * vocabulary
    narrow = 0 if k.bytes == 4 else logits // 2  # in which its products are
    summed = 0 if k.bytes == 4 or rows <= at_once else 4 * head  # the pieces' gradients, in float32
    gradients = k.tensor(rows, width) + k.tensor(1, head)  # made in the forward pass
    yield Piece(
        "text decoder",
        "vocabulary loss",
        "text decoder, head",
        head,
        kept=gradients,
        in_forward=logits + narrow + summed,
        in_backward=-k.tensor(1, head),  # it is the gradient
        kind="logits",
    )


def _rebuild(work: Work, part: Part, kept_patches: int) -> Iterator[Piece]:
    """The image decoder on all places and the loss in pixels (`objectives.masked_l1`), float32."""
    k, model, b = work.kernels, work.model, work.micro_batch_size
    decoder, n = model.image_decoder, model.image.patches
    rows, width, heads = b * n, decoder.width, decoder.heads
    kept = k.norm(b * kept_patches, model.image.width)
    first = "image decoder, first"
    yield Piece("image decoder", "embedding", first, numel(part.first), kept, in_backward=2 * k.tensor(rows, width))
    pair = [k.self_block(rows, width, heads)]
    if model.masking.mim == "text_guided":
        pair.append(k.cross_block(rows, width, heads, work.tokens, model.text.width))
    yield from _blocks(work, "image decoder", "blocks", part, [(rows, width, whole) for whole in pair])
    pixels = rows * model.image.patch_values
    yield Piece(
        "image decoder",
        "loss in pixels",
        "image decoder, head",
        numel(part.read),
        kept=k.tensor(rows, width) + k.norm(rows, width) + 4 * pixels,
        in_forward=(k.bytes + 8) * pixels,
        in_backward=8 * pixels + 2 * k.tensor(rows, width),
    )


def forward_pieces(work: Work) -> list[Piece]:
    """`SyCoCa._train`, in its order."""
    model, masking, k, b = work.model, work.model.masking, work.kernels, work.micro_batch_size
    weights, image, text, n = parts(model), model.image, model.text, model.image.patches
    masked = model.family == "sycoca"
    captioned = model.captions and not (masked and masking.low_ratio > 0)
    found = [*_encode_image(work, weights["image encoder"], "all patches", b, n)]
    found.append(_read_image(work, weights["image encoder"], "all patches", b, n, captioned=captioned))

    cls, shifted = text.pooling == "cls", text.pooling == "cls" and text.attention_mask == "open_clip"
    rows, text_part = work.tokens + (cls + shifted) * b, weights["text encoder"]
    whole = k.self_block(rows, text.width, text.heads)
    found.append(Piece("text encoder", "embedding", "text encoder, first", numel(text_part.first), 16 * rows))
    found += _blocks(work, "text encoder", "caption", text_part, [(rows, text.width, whole)])
    # what the last norm reads, all of the output where it is averaged, else [CLS]; and the tokens that the image decoder reads
    guided = model.reconstructs and masking.mim == "text_guided"
    if cls:
        kept = k.tensor(b, text.width) + (k.tensor(work.tokens, text.width) if guided else 0)
    else:
        kept = k.tensor(rows, text.width) + k.statistics(rows, text.width)
    found.append(Piece("text encoder", "output", kept=kept))
    found += _contrast(work, weights["image encoder"], text_part)
    if work.late_interaction:
        found.append(_late_interaction(work))

    seen = n - (hidden_count(n, masking.low_ratio) if masked else 0)
    sets = {"captioning's patches": seen} if masked and masking.low_ratio > 0 else {}
    if model.reconstructs:
        sets["TG-MIM's patches"] = n - hidden_count(n, masking.high_ratio)
    if sets and masking.mask_by == "attention":
        found.append(_scores(work))
    outputs = {what: k.tensor(b * (patches + 1), image.width) for what, patches in sets.items()}
    if masking.mask_at == "input" and sets:
        if len(set(sets.values())) == 1:  # one batch of twice the size; its output is one tensor, kept as long as one of them is
            found += _encode_image(work, weights["image encoder"], "kept patches", len(sets) * b, [*sets.values()][0])
        else:
            for what, patches in sets.items():
                found += _encode_image(work, weights["image encoder"], what, b, patches)
    if "captioning's patches" in sets and model.captions:
        output = outputs["captioning's patches"]
        found.append(_read_image(work, weights["image encoder"], "captioning's patches", b, seen, output))
    if "text decoder" in weights:
        found += _caption(work, weights["text decoder"], image.pooling_queries - 1 if image.pooling == "attention" else seen)
    if "image decoder" in weights:
        found.append(Piece("image encoder", "TG-MIM's patches: output", kept=outputs["TG-MIM's patches"]))
        found += _rebuild(work, weights["image decoder"], sets["TG-MIM's patches"])
    return found


def kept_bytes(pieces: list[Piece]) -> int:
    """What the backward pass finds when it begins."""
    return sum(piece.kept for piece in pieces)
