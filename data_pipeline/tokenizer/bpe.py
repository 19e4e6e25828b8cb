"""A byte-level BPE trained on the kept captions of a data set folder, with CLIP's cleaning (lower case, single
spaces)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.catalogue.captions import clean
from data_pipeline.errors import UserError, to_run
from data_pipeline.files import write_bytes
from data_pipeline.progress import Progress

SPECIAL = ("<pad>", "<start_of_text>", "<end_of_text>")
"""Ids 0, 1, 2."""
LEAST_VOCABULARY = 256 + len(SPECIAL)
# CLIP's pattern: contractions, runs of letters, single digits, runs of other signs.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerCommand:
    """Trains a byte-level BPE on the kept captions of a data set folder."""

    data: Path
    """Data set folder with a manifest."""
    out: Path
    """The tokenizer's file, for example DIR/tokenizer.json."""
    vocab_size: int = 49_152
    """Entries, special ones included; fewer if the captions do not give as many."""
    max_captions: int = 10_000_000
    """Captions used at most, from the first shards on (rows are in random order)."""
    dry_run: bool = False
    """Say what would be read and written; do neither."""

    def run(self) -> int:
        if self.dry_run:
            print(plan(self.data, self.out, self.vocab_size, self.max_captions))
            return 0
        train(self.data, self.out, self.vocab_size, self.max_captions)
        return 0


def captions(folder: Path, most: int | None = None) -> Iterator[str]:
    """Kept captions of a data set folder, cleaned, shard by shard in tar order."""
    from data_pipeline.shards.manifest import Manifest, ManifestError

    try:
        manifest = Manifest.load(folder)
        count = 0
        for number, shard in enumerate(manifest.shards):
            places = manifest.index(number, ["text_offset", "text_bytes"])
            handle = os.open(shard.path, os.O_RDONLY)
            try:
                for offset, size in zip(places["text_offset"].to_pylist(), places["text_bytes"].to_pylist(), strict=True):
                    if most is not None and count >= most:
                        return
                    count += 1
                    yield clean(os.pread(handle, size, offset).decode("utf-8"))
            finally:
                os.close(handle)
    except ManifestError as error:
        raise UserError(str(error)) from None


def new_tokenizer():
    """An untrained tokenizer: CLIP's cleaning and splitting, byte level, <start_of_text> and <end_of_text> around a
    text."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE())
    # Byte level with CLIP's words. Each word carries the space before it, the first one too, so that a word is the same
    # entry wherever it stands and decoding restores the spaces.
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
            normalizers.Prepend(" "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf" ?(?:{WORDS})"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A {SPECIAL[2]}", special_tokens=[(SPECIAL[1], 1), (SPECIAL[2], 2)]
    )
    return tokenizer


def check_size(vocab_size: int) -> None:
    """Raises `UserError` for a vocabulary too small for every text."""
    if vocab_size < LEAST_VOCABULARY:
        raise UserError(
            f"--vocab-size {vocab_size}: expected at least {LEAST_VOCABULARY} (256 bytes and {len(SPECIAL)} special entries)"
        )


def plan(folder: Path, out: Path, vocab_size: int, most: int) -> str:
    """What `train` would do, in a line. UserError: as there."""
    from data_pipeline.shards.manifest import Manifest, ManifestError

    check_size(vocab_size)
    try:
        manifest = Manifest.load(folder)
    except ManifestError as error:
        raise UserError(str(error)) from None
    there = ", which is there already and would be replaced" if out.exists() else ""
    return (
        f"would train {vocab_size:,} entries on {min(most, manifest.kept):,} of {manifest.kept:,} captions in {folder} "
        f"and write {out}{there}"
    )


def train(folder: Path, out: Path, vocab_size: int, most: int | None = None):
    """Trains on the kept captions of `folder`, writes `out` (whole or not at all), returns the tokenizer.
    Deterministic: the same captions in any order give the same file. UserError: no manifest, a vocabulary below 259."""
    from tokenizers import pre_tokenizers, trainers

    check_size(vocab_size)
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )

    with Progress("tokenizer", None, "captions") as bar:

        def batches() -> Iterator[list[str]]:
            batch = []
            for caption in captions(folder, most):
                batch.append(caption)
                if len(batch) == BATCH:
                    bar.advance(len(batch))
                    yield batch
                    batch = []
            bar.advance(len(batch))
            yield batch

        tokenizer.train_from_iterator(batches(), trainer)
        if bar.done == 0:
            raise UserError(f"{folder}: no kept caption to train on; run: {to_run('verify', folder)}")
    write_bytes(out, tokenizer.to_str(pretty=True).encode())
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        print(f"{out}: the captions give {size} entries, {vocab_size} were asked for", file=sys.stderr, flush=True)
    return tokenizer
