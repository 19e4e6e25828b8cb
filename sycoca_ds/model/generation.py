"""Captions with a key/value cache: greedy, beam search, sampling, freely or among given choices.

Always a fixed number of steps, agreed by all ranks beforehand: under ZeRO-3 a rank that stopped early would leave the others
waiting for its parameter shards. For the same reason no branch around the model looks at the data: a rank whose texts have all
ended calls it without rows.

Legend: B images, K beams, R = B * K rows (the beams of one image in a row), T steps, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import TextEncoderConfig
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.decoders import TextDecoder
from sycoca_ds.model.layers.key_values import KeyValues, Places
from sycoca_ds.model.masking.patches import random_scores
from sycoca_ds.model.text_encoder import PAD_ID, TextEncoder

NEVER = float("-inf")
"""Log-probability of a token that may not come next."""
BLOCK = 64
"""Numbers of a row of logits that `largest` looks at together."""
LOOKS_EVERY = 4
"""Steps between two looks at which texts have ended, where the host has to wait for the device to see it."""
KEPT_AT_MOST = 0.75
"""Share of the images whose texts may go on when the others' rows are given up."""


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen from the model's logits. The default is greedy.

    Raises:
        UserError: a value that means nothing, naming the field.
    """

    beams: int = 1
    """Hypotheses kept an image; 1 is greedy, or one sample. A finished hypothesis keeps its place among them."""
    sample: bool = False
    """Draw tokens from softmax(logits / temperature), cut by top_k and then top_p. Not together with beams > 1."""
    temperature: float = 1.0
    """With `sample`: above 0. Small values come close to greedy."""
    top_k: int = 0
    """With `sample`: only this many of the most likely tokens; 0 = all."""
    top_p: float = 1.0
    """With `sample`: only the fewest most likely tokens that together reach this probability, after top_k; 1 = all."""
    length_penalty: float = 0.0
    """With beams > 1: hypotheses are ranked by (sum of log-probabilities) / length ** length_penalty, at every step and at the
    end. The length counts generated tokens and [EOT], not the prompt. 0: the most likely text; 1: the mean, which is what
    open_clip's beam search ranks by; larger favours longer texts. Between -10 and 10."""
    min_tokens: int = 0
    """[EOT] may not come before this many generated words. Not together with choices, which say themselves where they end."""

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise UserError(f"decoding: {name} = {getattr(self, name)!r}: expected {expected}")

        for name, least in (("beams", 1), ("top_k", 0), ("min_tokens", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                refuse(name, f"a whole number of at least {least}")
        # written so that NaN is refused, too
        if not 0 < self.temperature < math.inf:
            refuse("temperature", "a finite number above 0 (for the most likely token, sample = False)")
        if not 0 < self.top_p <= 1:
            refuse("top_p", "a number above 0 and at most 1 (1 = all tokens)")
        if not -10 <= self.length_penalty <= 10:
            refuse("length_penalty", "a number between -10 and 10")
        if self.sample and self.beams > 1:
            refuse("beams", "1 with sample = True: choose beam search or sampling")


class Captioner:
    """Text encoder and text decoder, one token at a time, for B images and any number of texts an image."""

    def __init__(
        self,
        text_encoder: TextEncoder,
        text_decoder: TextDecoder,
        image_BSD: Tensor,
        valid_BS: Tensor | None = None,
        steps: int | None = None,
    ):
        """`image_BSD`: image tokens as `ImageEncoder.read` gives them; their keys and values are computed here, once. `valid_BS`:
        those that may be seen, default all. `steps`: tokens that there is room for, default the context length."""
        self.text_encoder, self.text_decoder, self.valid_BS = text_encoder, text_decoder, valid_BS
        self.image = [(k.contiguous(), v.contiguous()) for k, v in text_decoder.keys_values(image_BSD)]  # read at every token
        self.images, self.device = len(image_BSD), image_BSD.device
        if self.device.type == "cpu":  # what attention computes in there, once and not at every token
            self.image = [(k.float(), v.float()) for k, v in self.image]
        self.steps = steps or text_encoder.config.context_length
        self.largest_logit = torch.full((), NEVER, device=self.device)
        """Of all that were given: NaN where one was."""
        self.places: Places | None = None

    def next_logits(self, token_R: Tensor) -> Tensor:
        """Logits (R, V), float32, of what follows one more token a text: [SOT] at first. R is the same at every call, but for
        `keep`."""
        if self.places is None:
            self.places = Places(self.images, len(token_R) // self.images, self.steps, self.device)
            self.encoder_past = [KeyValues(self.places) for _ in self.text_encoder.blocks]
            self.decoder_past = [KeyValues(self.places) for _ in self.text_decoder.self_blocks]
        self.places.begin()
        x_R1D = self.text_encoder(token_R[:, None], self.encoder_past, self.places.step)[1]
        logits_RV = self.text_decoder.step(x_R1D, self.decoder_past, self.image, self.valid_BS).float()
        self.places.step += 1
        if len(token_R):
            self.largest_logit = torch.maximum(self.largest_logit, logits_RV.max())
        return logits_RV

    def reorder(self, index_R: Tensor) -> None:
        """Text r goes on as text `index_R[r]` of the same image was."""
        self.places.reorder(index_R)

    def keep(self, index_B: Tensor) -> None:
        """Only these images' texts go on; none is a number, too: then every module still runs, on nothing."""
        self.places.keep(index_B)
        for cache in (*self.encoder_past, *self.decoder_past):
            cache.keep(index_B)
        self.image = [(k.index_select(0, index_B), v.index_select(0, index_B)) for k, v in self.image]
        self.valid_BS = None if self.valid_BS is None else self.valid_BS.index_select(0, index_B)
        self.images = len(index_B)


def largest(x_BC: Tensor, k: int) -> Tensor:
    """Places (B, k) of the k largest float32 of each row, in falling order, equal ones by rising place.

    `topk` alone breaks ties as its algorithm happens to, which depends on the shape of the batch and the device, and ties are
    common: bf16 logits have 8 bits. So each number and its place become one integer of a kind. Of long rows that is done for k
    blocks alone: whoever is among the k largest is in one of the k blocks with the largest maxima, equal ones by rising place.
    """
    columns = x_BC.shape[1]
    blocks = columns // BLOCK
    if blocks > 4 * k:
        maxima_BN = x_BC[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).amax(dim=2)
        block_Bk = largest(maxima_BN, k).sort(dim=1).values
        inside = torch.arange(BLOCK, device=x_BC.device)
        place_BC = (block_Bk[:, :, None] * BLOCK + inside).flatten(1)
        rest = torch.arange(blocks * BLOCK, columns, device=x_BC.device).expand(len(x_BC), -1)
        place_BC = torch.cat([place_BC, rest], dim=1)
        return place_BC.gather(1, largest(x_BC.gather(1, place_BC), k))
    bits_BC = (x_BC + 0.0).contiguous().view(torch.int32)  # + 0.0: the bits of -0 are not those of 0
    order_BC = torch.where(bits_BC < 0, bits_BC ^ 0x7FFFFFFF, bits_BC).long()  # floats in order as integers in order
    place_C = torch.arange(columns, device=x_BC.device)
    key_BC = (order_BC << 32) + (columns - 1 - place_C)
    return columns - 1 - (key_BC.topk(k, dim=1).values & 0xFFFFFFFF)


def gumbel_noise(key_B: Tensor, step: int, vocab_size: int) -> Tensor:
    """Standard Gumbel noise (B, V), float32, a pure function of key, step and token: neither batch nor rank matters."""
    # Half a grid step keeps the logarithms finite; in float32 it would round the largest value up to 1.
    uniform_BV = random_scores(key_B, vocab_size, salt=step).double() + 2.0**-25
    return -(-uniform_BV.log()).log().float()


def filtered(logits_RV: Tensor, decoding: Decoding) -> Tensor:
    """Logits divided by the temperature, -inf at the tokens that top_k and then top_p leave out: (R, V)."""
    # The largest becomes 0 first: the digits of float32 then serve the likely tokens at low temperatures, too.
    scaled_RV = (logits_RV - logits_RV.amax(dim=1, keepdim=True)) / max(decoding.temperature, 1e-20)
    if decoding.top_k == 0 and decoding.top_p == 1:
        return scaled_RV
    sorted_RV, token_RV = scaled_RV.sort(dim=1, descending=True, stable=True)
    keep_RV = torch.ones_like(sorted_RV, dtype=torch.bool)
    if decoding.top_k:
        keep_RV[:, decoding.top_k :] = False
    if decoding.top_p < 1:
        share_RV = sorted_RV.masked_fill(~keep_RV, NEVER).softmax(dim=1)
        keep_RV &= share_RV.cumsum(dim=1) - share_RV < decoding.top_p  # what stands before it does not suffice
    return scaled_RV.masked_fill(~torch.zeros_like(keep_RV).scatter(1, token_RV, keep_RV), NEVER)


def extend(logp_RV: Tensor, score_R: Tensor, ended_R: Tensor, words_R: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor, Tensor]:
    """One step of beam search: the best K of each image's K * V ways on, best first.

    Args:
        logp_RV: float32 log-probabilities of the next token, -inf where it may not come.
        score_R: sums of log-probabilities, -inf for a dead hypothesis.
        ended_R: bool; words_R: int64, generated tokens so far.

    Returns:
        (row it goes on from, token, score), (R,) each. An image with fewer than K ways on keeps dead hypotheses at the end.
    """
    beams, few = decoding.beams, min(decoding.beams, logp_RV.shape[1])
    # the best K of an image are among the best K of each of its rows; by rising token, so that ties go to the lowest as a whole
    token_RK = largest(logp_RV, few).sort(dim=1).values
    logp_RK = logp_RV.gather(1, token_RK)
    # the one way on for an ended hypothesis is a pad that costs nothing
    logp_RK = logp_RK.masked_fill(ended_R[:, None], NEVER)
    logp_RK[:, 0] = logp_RK[:, 0].masked_fill(ended_R, 0.0)
    token_RK = token_RK.masked_fill(ended_R[:, None], PAD_ID)
    total_RK = score_R[:, None] + logp_RK
    length_R1 = (words_R + ~ended_R).clamp(min=1)[:, None]
    rank_RK = total_RK / length_R1**decoding.length_penalty
    place_BK = largest(rank_RK.view(-1, beams * few), beams)
    first_B1 = torch.arange(0, len(logp_RV), beams, device=logp_RV.device)[:, None]
    token_BK, score_BK = (x_RK.view(-1, beams * few).gather(1, place_BK) for x_RK in (token_RK, total_RK))
    return (first_B1 + place_BK // few).flatten(), token_BK.flatten(), score_BK.flatten()


def decided(score_R: Tensor, ended_R: Tensor, words_R: Tensor, left: int, decoding: Decoding) -> Tensor:
    """Images whose text no further step changes, bool (B,): the first hypothesis has ended and no live one can rank as high.

    A sum of log-probabilities only falls; what it is divided by is at most the power of its length with the `left` steps.
    """
    beams, penalty = decoding.beams, decoding.length_penalty
    if beams == 1:
        return ended_R
    length_R = words_R + torch.where(ended_R, 0, left if penalty > 0 else 1)
    rank_BK = (score_R / length_R.clamp(min=1) ** penalty).view(-1, beams)
    most_B = rank_BK.masked_fill(ended_R.view(-1, beams), NEVER).amax(dim=1)
    rounding_B = 0.0 if penalty == 0 else 1e-5 * rank_BK[:, 0].abs()
    return ended_R[::beams] & (most_B <= rank_BK[:, 0] - rounding_B)


def _prompts(prompt_BL: Tensor | None, captioner: Captioner, steps: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Prompts cut or padded to (B, T), and their lengths (B,)."""
    images, device = captioner.images, captioner.device
    if prompt_BL is None:
        prompt_BL = torch.zeros(images, 0, dtype=torch.int64, device=device)
    if prompt_BL.ndim != 2 or len(prompt_BL) != images or prompt_BL.dtype != torch.int64:
        raise ValueError(f"prompts {tuple(prompt_BL.shape)} {prompt_BL.dtype}: expected int64, one row for each of {images} images")
    prompt_BL = F.pad(prompt_BL.to(device), (0, steps), value=PAD_ID)
    # id 0 inside a prompt is a real token in CLIP's vocabulary, so the last other one marks the end
    length_B = ((prompt_BL != PAD_ID) * torch.arange(1, prompt_BL.shape[1] + 1, device=device)).amax(dim=1)
    if length_B.max() > steps:
        raise ValueError(f"a prompt of {int(length_B.max())} tokens does not fit into {steps} steps")
    if prompt_BL.min() < 0 or prompt_BL.max() >= vocab_size:
        raise ValueError(f"prompts hold ids outside 0..{vocab_size - 1}, the model's vocabulary")
    return prompt_BL[:, :steps], length_B


@torch.no_grad()
def generate(
    captioner: Captioner,
    steps: int,
    text: TextEncoderConfig,
    decoding: Decoding,
    prompt_BL: Tensor | None = None,
    choices: Choices | None = None,
    key_B: Tensor | None = None,
) -> Tensor:
    """Texts for the captioner's images; the model is called exactly `steps` times.

    Scores are the model's own log-probabilities in float32, not renormalised over the tokens that are allowed. With choices and
    at least as many beams as choices, and no length penalty, the result is the most likely choice.

    Args:
        steps: tokens of each text, the prompt and [EOT] counted; at most the context length, since [SOT] takes the first place
            and the last token is never read.
        prompt_BL: int64 beginnings without [SOT], padded at the end with id 0 to any length: the texts begin with them. In
            CLIP's vocabulary id 0 is "!", so a prompt cannot end with that; inside one it is a token like others, also with
            `attention_mask = open_clip`, which hides the place after it from a text that is read as a whole. A prompt that
            holds [EOT] is finished there.
        choices: what may follow the prompt. Every choice has to fit into the steps after the longest prompt.
        key_B: int64, one for each image; needed to sample. Equal keys, equal noise.

    Returns:
        int64 (B, T), without [SOT], prompts included, pads after [EOT]. Pads and [SOT] are never generated otherwise, except
        where a choice holds them.

    Images whose texts have all ended are given up on the way, so that they cost nothing.

    Raises:
        ValueError: steps, prompts, choices or keys that do not fit the model or one another.
    """
    beams, images, vocab_size, device = decoding.beams, captioner.images, text.vocab_size, captioner.device
    if not 1 <= steps <= text.context_length:
        raise ValueError(f"{steps} steps: expected 1 to {text.context_length}, the model's context length")
    if decoding.sample and (key_B is None or key_B.shape != (images,)):
        raise ValueError(f"sampling needs key_B, one int64 key for each of {images} images")
    prompt_BT, prompt_B = _prompts(prompt_BL, captioner, steps, vocab_size)
    if choices is not None:
        if choices.largest_id >= vocab_size:
            raise ValueError(f"a choice holds the token {choices.largest_id}; the model's vocabulary has {vocab_size}")
        if prompt_B.max() + choices.longest > steps:
            raise ValueError(
                f"a choice of {choices.longest} tokens after a prompt of {int(prompt_B.max())} does not fit into {steps} steps"
            )
        if decoding.min_tokens:
            raise UserError(f"decoding: min_tokens = {decoding.min_tokens}: expected 0 with choices, which say where they end")
        choices = choices.to(device)

    itself_R = torch.arange(images * beams, device=device)
    prompt_RT, prompt_R = prompt_BT.repeat_interleave(beams, 0), prompt_B.repeat_interleave(beams)
    token_R = torch.full_like(itself_R, text.sot_id)
    out_RT = torch.full((images * beams, steps), PAD_ID, dtype=torch.int64, device=device)
    ended_R = torch.zeros_like(itself_R, dtype=torch.bool)
    words_R = torch.zeros_like(itself_R)  # generated so far, [EOT] counted
    node_R = torch.zeros_like(itself_R)
    # One live beam an image: as many copies of the same beginning would go on as the same text.
    score_R = torch.zeros(images * beams, device=device).masked_fill(itself_R % beams != 0, NEVER)
    never = torch.tensor([PAD_ID, text.sot_id], device=device)
    key_B = None if key_B is None else key_B.to(device)
    found_BT, image_B = torch.full((images, steps), PAD_ID, dtype=torch.int64, device=device), torch.arange(images, device=device)
    looks_every = 1 if device.type == "cpu" else LOOKS_EVERY

    for step in range(steps):
        logits_RV = captioner.next_logits(token_R)
        if not len(token_R):
            continue  # all have ended; the model is called as often as on the other ranks
        logits_RV = logits_RV.log_softmax(dim=1) if beams > 1 else logits_RV.clone()
        if choices is not None:
            logits_RV.masked_fill_(~choices.allowed(node_R, vocab_size), NEVER)
        else:
            logits_RV.index_fill_(1, never, NEVER)
            logits_RV[:, text.eot_id].masked_fill_(words_R < decoding.min_tokens, NEVER)
        forced_R = step < prompt_R

        if beams > 1:
            parent_R, token_R, total_R = extend(logits_RV, score_R, ended_R, words_R, decoding)
            # the beams of a prompt are all alike, whichever row they go on from
            score_R = torch.where(forced_R, score_R, total_R)
            captioner.reorder(parent_R)
            out_RT, ended_R, words_R, node_R = (x.index_select(0, parent_R) for x in (out_RT, ended_R, words_R, node_R))
        elif decoding.sample:
            token_R = (filtered(logits_RV, decoding) + gumbel_noise(key_B, step, vocab_size)).argmax(dim=1)
        else:
            token_R = logits_RV.argmax(dim=1)

        token_R = torch.where(forced_R, prompt_RT[:, step], token_R).masked_fill(ended_R, PAD_ID)
        out_RT[:, step] = token_R
        free_R = ~forced_R & ~ended_R
        words_R = words_R + free_R
        if choices is not None:
            node_R = torch.where(free_R, choices.follow(node_R, token_R), node_R)
        ended_R = ended_R | (token_R == text.eot_id)

        if step % looks_every == 0 and step + 1 < steps:
            live_B = (~decided(score_R, ended_R, words_R, steps - step - 1, decoding)).nonzero().squeeze(1)
            # keys and values of those that go on are copied, so not for one image of many
            if len(live_B) <= KEPT_AT_MOST * len(image_B):
                found_BT[image_B] = out_RT[::beams]  # an image's beams stand in falling order
                captioner.keep(live_B)
                image_B = image_B[live_B]
                key_B = None if key_B is None else key_B[live_B]
                rows = (live_B[:, None] * beams + torch.arange(beams, device=device)).flatten()
                token_R, out_RT, ended_R, words_R, node_R, score_R, prompt_RT, prompt_R = (
                    x.index_select(0, rows) for x in (token_R, out_RT, ended_R, words_R, node_R, score_R, prompt_RT, prompt_R)
                )
    found_BT[image_B] = out_RT[::beams]
    return found_BT
