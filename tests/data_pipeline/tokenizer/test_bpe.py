"""The tokenizer: special entries, round trips, the same file from the same captions."""

import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from data_pipeline.errors import UserError
from data_pipeline.shards.verify import verify
from data_pipeline.tokenizer.bpe import captions, train
from tests.worlds.data.data_sets import data_set, sample, write_tar

TEXTS = [
    "a large red circle at top left and a small blue star in the middle on a white background",
    "two dogs' tails, 42 of them!",
    "on a gray background, a large green ring on the right",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens") / "ds"
    members = [part for number in range(60) for part in sample(number, caption=f"{TEXTS[number % 3]} {number}".encode())]
    write_tar(root / "shards/00000.tar", members + sample(99, caption=b"zzz qqq zzz qqq zzz qqq", width=1))
    verify(root, processes=1)
    return root


def test_special_entries_and_round_trip(folder, tmp_path):
    train(folder, tmp_path / "t.json", 400)
    tokenizer = Tokenizer.from_file(str(tmp_path / "t.json"))
    assert [tokenizer.id_to_token(number) for number in range(3)] == ["<pad>", "<start_of_text>", "<end_of_text>"]
    assert 259 < tokenizer.get_vocab_size() <= 400
    for text in (*TEXTS, "never seen: \u65e5\u672c \U0001f600 na\u00efve", "x"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text).ids == [1, *ids, 2]
    assert len(tokenizer.encode(TEXTS[0], add_special_tokens=False).ids) == len(TEXTS[0].split()), "one entry a word"


def test_cleaning_is_clips(folder, tmp_path):
    tokenizer = train(folder, tmp_path / "t.json", 400)
    assert tokenizer.encode("  A Large\n\tRED circle ").ids == tokenizer.encode("a large red circle").ids
    word = tokenizer.encode("circle", add_special_tokens=False).ids
    assert tokenizer.encode("red circle", add_special_tokens=False).ids[-len(word) :] == word, "the same entry wherever it stands"
    assert tokenizer.encode("<pad>", add_special_tokens=False).ids != [] and "\u0120the" in tokenizer.encode("the").tokens


def test_only_kept_captions_are_used(folder):
    assert len(list(captions(folder))) == 60 and not any("zzz" in text for text in captions(folder))
    assert list(captions(folder, most=7)) == list(captions(folder))[:7]


@pytest.mark.timeout(60)
def test_same_captions_same_file_in_any_process(folder, tmp_path):
    train(folder, tmp_path / "here.json", 350)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "data_pipeline",
            "tokenizer",
            "train",
            "--data",
            str(folder),
            "--out",
            str(tmp_path / "there.json"),
            "--vocab-size",
            "350",
        ],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
    )
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="--vocab-size 258: expected at least 259"):
        train(tmp_path, tmp_path / "t.json", 258)
    with pytest.raises(UserError, match="no such folder"):
        train(tmp_path / "none", tmp_path / "t.json", 400)
    with pytest.raises(UserError, match="manifest.json: not there"):
        train(data_set(tmp_path / "ds", shards=1), tmp_path / "t.json", 400)
    assert not (tmp_path / "t.json").exists()
