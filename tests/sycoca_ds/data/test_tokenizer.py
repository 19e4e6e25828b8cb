"""Captions to ids and back: special tokens' letters, ends, files that were written earlier or by others."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.tokenizer.clip_bpe import clip_tokenizer
from sycoca_ds.data.tokenizer import Tokenizer, trim

LETTERS = {
    "before <end_of_text> after": "before <end_of_text> after",
    "<start_of_text>red<pad>blue": "<start_of_text>red<pad>blue",
    "a &lt;end_of_text&gt; b &amp;lt;pad&amp;gt;": "a <end_of_text> b <pad>",
    "\uff1cend_of_text\uff1e full width": "<end_of_text> full width",
    "<END_OF_TEXT> shouted": "<end_of_text> shouted",
    "<pad>": "<pad>",
    "<end_of_text": "<end_of_text",
}
"""Captions, and what stands in them once they are cleaned and in lower case."""


def test_tokenizer_pads_cuts_and_returns(data_set: Path) -> None:
    tokenizer = Tokenizer(data_set / "tokenizer.json")
    ids = tokenizer.encode(["red beside blue", "red " * 40, ""], 12)
    assert ids.shape == (3, 12) and ids.dtype == np.int64
    assert ids[:, 0].tolist() == [1, 1, 1] and ids[1, -1] == 2 and ids[2].tolist() == [1, 2] + [0] * 10
    assert tokenizer.decode(ids[0]) == "red beside blue"
    length = int((ids[0] != 0).sum())
    assert ids[0, length - 1] == 2 and (ids[0, length:] == 0).all() and (ids[0, :length] != 0).all()
    assert trim(ids[[0, 2]], multiple=4).shape == (2, -(-length // 4) * 4)
    assert np.array_equal(trim(ids), ids), "a full row keeps every column"


def test_a_missing_damaged_or_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: train one with `python -m data_pipeline tokenizer"):
        Tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer(tmp_path / "bad.json")
    from tokenizers import Tokenizer as Bpe
    from tokenizers.models import WordLevel

    Bpe(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "foreign.json"))
    with pytest.raises(UserError, match="expected ids above 0 for <start_of_text> and <end_of_text>"):
        Tokenizer(tmp_path / "foreign.json")


def test_special_tokens_in_a_caption_are_letters(data_set: Path) -> None:
    tokenizer = Tokenizer(data_set / "tokenizer.json")
    # `tokenizers` keeps its switch neither in the file nor in a copy: loader processes may be sent one
    for reader in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        for row, text in zip(reader.encode(list(LETTERS), 60), LETTERS.values(), strict=True):
            length = int(np.flatnonzero(row == 2)[0]) + 1
            assert row[0] == 1 and not np.isin(row[1 : length - 1], [0, 1, 2]).any() and not row[length:].any(), text
            assert reader.decode(row) == text
    long = tokenizer.encode(["<end_of_text> " * 40], 12)[0]
    assert long[-1] == 2 and not np.isin(long[1:-1], [0, 1, 2]).any(), "cut, with its end"


def few_words_of_clip(folder: Path, earlier: bool) -> Path:
    """CLIP's BPE with two merges (ids as in the whole one, but for the two special ones: 514, 515); `earlier`: with the decoder
    that files had until 2026-11, whose Strip cannot bear an empty text."""
    path = folder / f"clip_{earlier}.json"
    content = json.loads(clip_tokenizer([("c", "a"), ("ca", "t</w>")]).to_str())
    if earlier:
        content["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "},
                {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ],
        }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("earlier", [False, True])
def test_clips_bpe_decodes_anything(earlier: bool, tmp_path: Path) -> None:
    tokenizer = Tokenizer(few_words_of_clip(tmp_path, earlier))
    sot, eot = tokenizer.sot_id, tokenizer.eot_id
    assert (sot, eot, tokenizer.vocab_size) == (514, 515, 516)
    # a model has more rows than CLIP's BPE fills (coca_base: 64000) and may write their numbers
    for nothing in ([], [eot], [sot], [sot, eot, 5], [600], [sot, 63999, eot, 0, 0]):
        assert tokenizer.decode(nothing) == ""
    assert tokenizer.decode([sot, 513, 256, eot, 0, 0]) == "cat !"
    assert tokenizer.decode([sot, 0, 0, 256, 513, eot]) == "!!! cat", "id 0 is an entry"
    assert tokenizer.decode([sot, 513, 600, 513]) == "cat cat", "no end, and an id without entry"


def test_clips_file_alone_decodes_nothing_to_nothing() -> None:
    bpe = clip_tokenizer([("c", "a"), ("ca", "t</w>")])
    assert [bpe.decode(ids) for ids in ([515], [], [513], [513, 513, 0, 256])] == ["", "", "cat", "cat cat !!"]


def test_clips_bpe_takes_open_clips_tokens_out_of_a_caption(tmp_path: Path) -> None:
    """As open_clip does (open_clip/test_peer.py compares with it)."""
    tokenizer = Tokenizer(few_words_of_clip(tmp_path, earlier=False))
    assert tokenizer.encode(["cat &lt;end_of_text&gt; cat"], 8)[0].tolist() == [514, 513, 515, 513, 515, 0, 0, 0]


AWKWARD = {
    "a red star beside a blue one": ("red star", "red star"),
    "Red": ("Red", "red"),
    "  a   RED \n  star  on white": ("RED \n  star", "red star"),
    "star, red! and (blue)": ("red", "red"),
    "(blue) star": ("blue", "blue"),
    "black &amp; white &amp;amp; red star": ("white &amp;amp; red", "white & red"),
    "\u201cblue\u201d star": ("blue", "blue"),
    "two \ufb01ne stars": ("\ufb01ne stars", "fine stars"),
    "caf\u0065\u0301 beside red": ("caf\u0065\u0301", "caf\u00e9"),
    "\U0001f600 red \U0001f680 blue": ("\U0001f680 blue", "\U0001f680 blue"),
    "\uff52\uff45\uff44 star": ("\uff52\uff45\uff44", "red"),
    "\u0130zmir beside red": ("red", "red"),
    "before <end_of_text> red": ("red", "red"),
}
"""Captions, and a part of each: as it is written, and as its tokens read."""


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("caption", AWKWARD)
def test_places_hold_the_tokens_of_the_words(caption: str, clips: bool, data_set: Path, tmp_path: Path) -> None:
    """Read back by the decoder, which knows nothing of offsets; the tokens before and after are of other words."""
    tokenizer = Tokenizer(few_words_of_clip(tmp_path, earlier=False) if clips else data_set / "tokenizer.json")
    if clips and "end_of_text" in caption:
        caption = caption.replace("<end_of_text> ", "")  # which ends a caption there
        part, reads = "red", "red"
    else:
        part, reads = AWKWARD[caption]
    (ids,) = tokenizer.encode([caption], 76)
    start = caption.rindex(part)
    (places,) = tokenizer.places(caption, [(start, start + len(part))], 76)
    assert places == list(range(places[0], places[-1] + 1)) and places[0] >= 1
    assert "".join(tokenizer.decode(ids[places]).split()) == "".join(reads.split())
    end = int(np.flatnonzero(ids == tokenizer.eot_id)[0])
    rest = tokenizer.decode([*ids[1 : places[0]], *ids[places[-1] + 1 : end]])
    assert len("".join(rest.split())) + len("".join(reads.split())) == len("".join(tokenizer.decode(ids).split()))


def test_places_of_all_words_are_all_places_and_what_is_cut_off_has_none(data_set: Path) -> None:
    tokenizer, caption = Tokenizer(data_set / "tokenizer.json"), "red beside blue and green beside white"
    (ids,) = tokenizer.encode([caption], 76)
    end = int(np.flatnonzero(ids == 2)[0])
    words = [match.span() for match in re.finditer(r"\w+", caption)]
    whole, *_ = tokenizer.places(caption, [(0, len(caption))], 76)
    assert whole == list(range(1, end))
    each = tokenizer.places(caption, words, 76)
    between = sorted(set(whole) - {place for places in each for place in places})
    assert {place for places in each for place in places} <= set(whole) and tokenizer.decode(ids[between]) == "", "spaces alone"
    for length in range(3, end + 2):
        cut = tokenizer.places(caption, words, length)
        assert cut == [[place for place in places if place < length - 1] for places in each]
    assert tokenizer.places(caption, [(0, 0), (len(caption), len(caption) + 5)], 76) == [[], []], "no characters, no tokens"
