"""Captions to ids with a `tokenizers` file that `python -m data_pipeline tokenizer train` trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.catalogue.captions import clean
from data_pipeline.errors import UserError
from sycoca_ds.config import check_tokenizer_file
from sycoca_ds.data.alignment import Span, carry
from sycoca_ds.model.text_encoder import PAD_ID


class Tokenizer:
    """A BPE tokenizer with <start_of_text> and <end_of_text>, padded with id 0.

    `sot_id`, `eot_id`: ids of the two (1 and 2 in the tokenizers this project trains, 49406 and 49407 in CLIP's).

    A special token's letters in a caption (`<end_of_text>` in a text about HTML) are letters. With CLIP's BPE they become the
    token, as in open_clip, whose ids these have to be.

    Raises:
        UserError: the file is missing, is no tokenizer, or lacks the two tokens.
    """

    def __init__(self, path: str | Path):
        from tokenizers import Tokenizer as Bpe

        # the loader's worker processes are forked after first use; parallel tokenisation in them would only warn and wait
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.path = Path(path)
        check_tokenizer_file(self.path)
        try:
            self._bpe = Bpe.from_file(str(self.path))
        except Exception as error:  # the library raises plain Exception for a damaged file
            raise UserError(
                f"tokenizer {self.path} cannot be read ({error}): expected one of `python -m data_pipeline tokenizer train`"
            ) from error
        special = [self._bpe.token_to_id(token) for token in ("<start_of_text>", "<end_of_text>")]
        pad = self._bpe.token_to_id("<pad>")  # CLIP's BPE has none
        if None in special or PAD_ID in special or pad not in (None, PAD_ID):
            raise UserError(
                f"tokenizer {self.path}: expected ids above {PAD_ID} for <start_of_text> and <end_of_text> and {PAD_ID} for <pad> "
                f"if it has one, found {special} and {pad}; train it with `python -m data_pipeline tokenizer train`"
            )
        self.sot_id, self.eot_id = special
        self._unspoken = {number for number, token in self._bpe.get_added_tokens_decoder().items() if token.special}
        self._unspoken |= set() if pad is None else {pad}  # without <pad>, id 0 is an entry like others ("!" in CLIP's BPE)
        self._clips = bool(getattr(self._bpe.model, "end_of_word_suffix", None))  # CLIP's BPE, known by its marks at words' ends

        self.vocab_size = 1 + max(self._bpe.get_vocab().values())
        """Ids run from 0 to vocab_size - 1; an edited file may leave some out."""

    def has_ids_of(self, other: Path) -> bool:
        """Whether the tokenizer in another file gives the same entries the same ids."""
        return self.path.read_bytes() == other.read_bytes() or self._bpe.get_vocab() == Tokenizer(other)._bpe.get_vocab()

    def encode(self, captions: Sequence[str], context_length: int) -> np.ndarray:
        """int64 (B, context_length): [SOT] words [EOT] pads, of cleaned captions. A longer one is cut and still ends in [EOT]."""
        out = np.full((len(captions), context_length), PAD_ID, dtype=np.int64)
        texts = self._texts(captions)
        for row, encoding in zip(out, self._bpe.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            ids = encoding.ids[: context_length - 2]
            row[: len(ids) + 2] = [self.sot_id, *ids, self.eot_id]
        return out

    def _texts(self, captions: Sequence[str]) -> list[str]:
        """What the BPE is given."""
        texts = [clean(caption) for caption in captions]
        if self._clips:  # CLIP lowers the whole text, which knows how a Greek word ends
            texts = [text.lower() for text in texts]
        # set anew: neither the file nor a pickled copy keeps it
        self._bpe.encode_special_tokens = not self._clips
        return texts

    def places(self, caption: str, spans: Sequence[Span], context_length: int) -> list[list[int]]:
        """Which places of the encoded caption hold each span's characters, ascending; [SOT] is at 0. A token that holds only some
        of them counts; what is cut off, or cleaned away, does not.

        Args:
            spans: characters of the caption as it is given, before cleaning.
        """
        (text,) = self._texts([caption])
        offsets = self._bpe.encode(text, add_special_tokens=False).offsets[: context_length - 2]
        return [
            [place for place, (first, last) in enumerate(offsets, 1) if first < end and start < last]
            for start, end in carry(spans, caption, text)
        ]

    def meaningless_ids(self, words: Sequence[str]) -> list[int]:
        """Ids of tokens that say nothing of a picture: the given words, at a text's start and inside it, where each is one token;
        signs that are neither letter nor digit; the special tokens."""
        found = {self.sot_id, self.eot_id, *self._unspoken}
        for _, *ids, end in self.encode([f"{word} {word}" for word in words], 5)[:, :4].tolist():
            found.update(ids if end == self.eot_id else ())
        for number in set(self._bpe.get_vocab().values()) - found:
            text = self._bpe.decode([number]).strip()
            if not any(sign.isalnum() or sign == "\N{REPLACEMENT CHARACTER}" for sign in text):  # the latter: a part of a letter
                found.add(number)
        return sorted(found)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids up to the first [EOT]; special tokens and ids that are no entry are left out."""
        words = []
        for number in map(int, ids):
            if number == self.eot_id:
                break
            if number not in self._unspoken and self._bpe.id_to_token(number) is not None:
                words.append(number)
        # of nothing, the decoder in CLIP's earlier files makes a panic of Rust's, which is no Exception
        return self._bpe.decode(words).strip() if words else ""


def trim(text_BL: np.ndarray, multiple: int = 8) -> np.ndarray:
    """Cuts columns that are padding in every row, to a multiple of `multiple`. Changes no result of the model: padding
    influences nothing."""
    used_L = (text_BL != PAD_ID).any(axis=0)
    longest = int(used_L.nonzero()[0].max()) + 1 if used_L.any() else 1
    return text_BL[:, : min(text_BL.shape[1], -(-longest // multiple) * multiple)]
