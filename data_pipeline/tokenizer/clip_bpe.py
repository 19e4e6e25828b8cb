"""CLIP's BPE as a tokenizer.json: for open_clip's weights, whose token ids are its.

The merges, bpe_simple_vocab_16e6.txt.gz, come with open_clip (in its package's folder) and with openai/CLIP.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import write_bytes
from data_pipeline.tokenizer.bpe import SPECIAL, WORDS

VOCABULARY = 49_408
MERGES = VOCABULARY - 2 * 256 - 2
"""Entries that are two earlier ones put together: all but 256 bytes, 256 bytes that end a word, and the two special ones."""
MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
"""Of the lines of bpe_simple_vocab_16e6.txt that CLIP uses, in open_clip_torch 3.3.0."""
WORD_END = "</w>"
MOST_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ImportClipCommand:
    """Writes CLIP's BPE as a tokenizer.json, whose ids are those of open_clip's tokenizer."""

    out: Path
    """The tokenizer's file, for example clip.json."""
    merges: Path | None = None
    """bpe_simple_vocab_16e6.txt.gz; default: the one in the installed open_clip."""

    def run(self) -> int:
        write_bytes(self.out, clip_tokenizer(read_merges(self.merges or installed_merges())).to_str(pretty=True).encode())
        return 0


def installed_merges() -> Path:
    """The merges file in open_clip's package. Raises `UserError` where it is not installed."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise UserError("--merges: open_clip is not installed here; give its bpe_simple_vocab_16e6.txt.gz, or that of openai/CLIP")
    return Path(found.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs in the order in which they were learned.

    Raises:
        UserError: missing, or not CLIP's list.
    """
    try:
        opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            lines = file.read(MOST_BYTES).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"--merges {path} cannot be read ({error}): expected bpe_simple_vocab_16e6.txt.gz") from error
    # the list is longer than the vocabulary that CLIP made of it; its first line names its version
    used = lines[1 : MERGES + 1]
    if hashlib.sha256("\n".join(used).encode()).hexdigest() != MERGES_SHA256:
        raise UserError(
            f"--merges {path}: its lines 2 to {MERGES + 1} are not CLIP's merges: expected bpe_simple_vocab_16e6.txt.gz of "
            "open_clip or openai/CLIP; a tokenizer of your own comes from `python -m data_pipeline tokenizer train`"
        )
    return [tuple(line.split(" ")) for line in used]


def byte_letters() -> list[str]:
    """The letter that stands for each byte, in the order of CLIP's ids: first the bytes that are letters of their own."""
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return [chr(byte) for byte in own] + [chr(256 + number) for number in range(len(others))]


def clip_tokenizer(merges: list[tuple[str, str]]):
    """A `tokenizers.Tokenizer` that gives CLIP's ids for a text that `captions.clean` has cleaned and that is in lower case."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = byte_letters()
    entries = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges), *SPECIAL[1:]]
    ids = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(ids, merges, end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(WORD_END, " "), decoders.Strip(" ", 0, 1)])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL[1:]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A {SPECIAL[2]}", special_tokens=[(name, ids[name]) for name in SPECIAL[1:]]
    )
    return tokenizer
