"""Caption scores: hand-worked values, the official package's own classes, and the traps (line breaks, |||, empty
captions)."""

import math

import pytest

from sycoca_ds.eval.scorers import caption_tokens
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.eval.scorers.caption_tokens import java_command, one_line, ptb_tokenize, regex_tokenize
from sycoca_ds.eval.scorers.captions import Meteor as MeteorProcess
from sycoca_ds.eval.scorers.captions import cider_scores, corpus_scores, score_captions, score_groups, token_tables

needs_java = pytest.mark.skipif(java_command() is None, reason="needs the program `java` (Debian: default-jre-headless)")

REFERENCES = {
    "a": ["A red circle at top left on a white background.", "On white, a red circle (top left)"],
    "b": ["Two dogs don't run, they sleep!", 'the dogs\' bed; "soft" and warm'],
    "c": ["A 1,000 year-old tree at the river's edge"],
}
HYPOTHESES = {"a": "a red circle on a white background", "b": "two dogs sleep", "c": "a tree at the river"}


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(caption_tokens, "java_command", lambda: None)
    monkeypatch.setattr(captioning, "java_command", lambda: None)


def test_bleu_by_hand():
    # 7 tokens against 8: unigrams 7/7, bigrams 6/6, ... for a prefix; brevity exp(1 - 8/7)
    tables = {"x": ["one two three four five six seven eight"]}, {"x": ["one two three four five six seven"]}
    numbers, _ = corpus_scores(*tables)
    assert numbers["bleu4"] == pytest.approx(math.exp(1 - 8 / 7), rel=1e-6)
    # clipped unigrams 2/4, bigrams 1/3: BLEU-2 = sqrt(1/6), no brevity penalty at equal length
    numbers, _ = corpus_scores({"x": ["a b c d"]}, {"x": ["a b b b"]})
    assert numbers["bleu1"] == pytest.approx(0.5, rel=1e-6) and numbers["bleu2"] == pytest.approx(math.sqrt(1 / 6), rel=1e-6)


def test_cider_by_hand():
    """Four images, each with its own four words: every n-gram has IDF log 4, so equal captions score 10 and foreign
    ones 0; half of the words in order (a b): cosine 1/sqrt(2) for unigrams, 1/sqrt(3) for bigrams, 0 above, length
    penalty for 3 - 1 = 2 fewer bigrams (CIDEr-D counts length in bigrams)."""
    references = {"1": ["a b c d"], "2": ["e f g h"], "3": ["i j k l"], "4": ["m n o p"]}
    hypotheses = {"1": ["a b c d"], "2": ["a b c d"], "3": ["i j"], "4": [""]}
    partial = 10 * (1 / math.sqrt(2) + 1 / math.sqrt(3)) / 4 * math.exp(-(2**2) / (2 * 6.0**2))
    assert cider_scores(references, hypotheses) == pytest.approx([10, 0, partial, 0], rel=1e-9)


def test_rouge_by_hand():
    # LCS "a c" = 2: precision 2/2, recall 2/4, beta 1.2
    expected = (1 + 1.44) * 1 * 0.5 / (0.5 + 1.44 * 1)
    assert corpus_scores({"x": ["a b c d"]}, {"x": ["a c"]})[0]["rouge_l"] == pytest.approx(expected)


def test_scores_of_strings_equal_the_package_on_tokens(no_java):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    numbers, reasons, kind, each, failed = score_captions(HYPOTHESES, REFERENCES)
    assert not failed
    cider_I = each["cider"]
    tokens = {key: [regex_tokenize(caption) for caption in captions] for key, captions in REFERENCES.items()}
    written = {key: [regex_tokenize(caption)] for key, caption in HYPOTHESES.items()}
    assert numbers["bleu4"] == pytest.approx(Bleu(4).compute_score(tokens, written, verbose=0)[0][3])
    assert numbers["cider"] == pytest.approx(Cider().compute_score(tokens, written)[0])
    assert numbers["cider"] == pytest.approx(cider_I.mean()) and len(set(cider_I)) == 3
    moved = {"a": written["c"], "b": written["a"], "c": written["b"]}
    assert numbers["cider_shuffled"] == pytest.approx(Cider().compute_score(tokens, moved)[0])
    assert numbers["cider_shuffled"] < numbers["cider"] / 4
    assert kind == "regex fallback: no java"
    assert numbers["meteor"] is None and "java" in reasons["meteor"]
    assert numbers["spice"] is None and "CoreNLP" in reasons["spice"]


def test_order_of_images_changes_nothing(no_java):
    first = score_captions(HYPOTHESES, REFERENCES)[0]
    again = score_captions(dict(reversed(HYPOTHESES.items())), REFERENCES)[0]
    assert first == again


EMPTY = [("", " "), ("...", "!"), ("\u3000", "\n")]


@pytest.mark.parametrize(
    "tools, empty",
    [
        *(("regex", empty) for empty in EMPTY),
        *(pytest.param("java", empty, marks=[needs_java, pytest.mark.full]) for empty in EMPTY),
    ],
)
def test_references_without_a_word(tools, empty, request):
    """What the package gives on two images whose references are empty, and None with the reason for CIDEr, where it fails."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    if tools == "regex":
        request.getfixturevalue("no_java")
    references, tokens = {"x": [empty[0]], "y": [empty[1]] * 2}, {"x": [""], "y": ["", ""]}
    numbers, reasons, *_ = score_captions({"x": "a dog", "y": "a cat"}, references)
    written = {"x": ["a dog"], "y": ["a cat"]}
    with pytest.raises(ValueError):
        Cider().compute_score(tokens, written)
    assert [numbers["cider"], numbers["cider_shuffled"]] == [None, None]
    assert reasons["cider"] == reasons["cider_shuffled"] == captioning.WORDLESS
    assert [numbers[f"bleu{n}"] for n in range(1, 5)] == Bleu(4).compute_score(tokens, written, verbose=0)[0]
    assert numbers["rouge_l"] == 0 and numbers["meteor"] == (None if tools == "regex" else 0)
    assert numbers["mean_words"] == 2 and numbers["distinct"] == 100
    assert all(value is not None or name in reasons for name, value in numbers.items())


def test_one_reference_with_a_word_is_enough_for_cider(no_java):
    numbers, reasons, *_ = score_captions({"x": "a dog", "y": ""}, {"x": [""], "y": ["", "a dog"]})
    assert numbers["cider"] == 0 and numbers["cider_shuffled"] > 1 and "cider" not in reasons


def test_regex_tokens():
    assert regex_tokenize("Don't stop: it's the dogs' (big) \"1,000\" t-shirt...") == (
        "do n't stop it 's the dogs -lrb- big -rrb- 1,000 t-shirt"
    )


def test_lines_never_shift():
    assert one_line("a\u2028b\nc\r\nd\x0be\x85f ||| g") == "a b c d e f g"
    assert one_line(" \n ") == ""


def test_missing_and_extra_images_are_named():
    with pytest.raises(ValueError, match="1 without a caption .'c'., 1 without references .'z'."):
        score_captions({"a": "x", "b": "y", "z": "w"}, REFERENCES)
    with pytest.raises(ValueError, match="no reference caption, the first is a"):
        score_captions({"a": "x"}, {"a": []})


@needs_java
def test_ptb_keeps_one_line_a_caption_and_equals_the_package():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    plain = [caption for captions in REFERENCES.values() for caption in captions]
    official = PTBTokenizer().tokenize({n: [{"caption": caption}] for n, caption in enumerate(plain)})
    odd = ["", "a\u2028b", "x ||| y", "caf\u00e9", "\n", "."]
    assert ptb_tokenize([*odd, *plain, ""]) == (
        ["", "a b", "x y", "caf\u00e9", "", ""] + [official[n][0] for n in range(len(plain))] + [""]
    )
    unknown = "\ufffd\ufffd"  # as an untrained model says: characters of no token
    for captions in ([unknown, "a dog"], ["a dog", unknown], [unknown], ["a", unknown, "", unknown, "b"]):
        assert ptb_tokenize(captions) == ["" if caption == unknown else caption for caption in captions]


@needs_java
def test_regex_equals_ptb_on_the_drawn_world():
    from data_pipeline.world.drawn.demo_scenes import sample_scenes

    captions = [scene.caption for scene in sample_scenes(300, seed=1)]
    assert [regex_tokenize(caption) for caption in captions] == ptb_tokenize(captions)


METEOR = 0.2243556629513558
"""Of the captions above, with an empty one in place of b's, by the package: it starts Java, for 12 s of a core."""


def tables() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    tokens = {key: [regex_tokenize(caption) for caption in captions] for key, captions in REFERENCES.items()}
    return tokens, {key: [regex_tokenize(caption)] for key, caption in HYPOTHESES.items()} | {"b": [""]}


@pytest.mark.slow
@needs_java
def test_meteor_equals_the_package_even_under_a_comma_locale(monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=it -Duser.country=IT")
    with MeteorProcess() as meteor:
        first, rows = meteor.score(*tables())
        again, same = meteor.score(*tables())
    assert first == again == pytest.approx(METEOR, abs=1e-12) and (rows == same).all() and meteor.starts == 1


@pytest.mark.full
@needs_java
def test_what_the_package_gives(monkeypatch):
    from pycocoevalcap.meteor.meteor import Meteor

    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=en -Duser.country=US")
    assert Meteor().compute_score(*tables())[0] == pytest.approx(METEOR, abs=1e-12)


@needs_java
def test_meteor_that_hangs_is_stopped():
    with MeteorProcess() as meteor, pytest.raises(RuntimeError, match="METEOR stopped early"):
        meteor.score({"a": ["b"]}, {"a": ["b"]}, timeout=0.05)


@needs_java
@pytest.mark.parametrize("meteor", [False, pytest.param(True, marks=pytest.mark.full)], ids=["without METEOR", "with METEOR"])
def test_a_group_is_scored_as_the_package_scores_its_annotations_alone(monkeypatch, meteor):
    """As NoCaps' domains are: COCOEvalCap's steps on a COCO object that holds the group's images only."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references = REFERENCES | {"d": ["A cat on a mat."], "e": ["Three red apples, and a dog"]}
    hypotheses = HYPOTHESES | {"d": "a dog on a mat", "e": "a red tree"}
    group = {"a": "in-domain", "b": "out-domain", "c": "in-domain", "d": "out-domain", "e": "in-domain"}
    tables = token_tables(hypotheses, references)
    if not meteor:  # whose start takes seconds
        monkeypatch.setattr(captioning, "java_command", lambda: None)
    with MeteorProcess() as process:
        found = score_groups(*tables, group, process)
    assert process.starts == meteor
    assert list(found) == ["in-domain", "out-domain"]
    all_gts = PTBTokenizer().tokenize({key: [{"caption": caption} for caption in references[key]] for key in references})
    all_res = PTBTokenizer().tokenize({key: [{"caption": hypotheses[key]}] for key in references})
    for name, scores in found.items():
        mine = [key for key in references if group[key] == name]
        gts, res = ({key: table[key] for key in mine} for table in (all_gts, all_res))
        bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
        expected = {
            **{f"bleu{n}": value for n, value in enumerate(bleu, 1)},
            "cider": Cider().compute_score(gts, res)[0],
            "rouge_l": Rouge().compute_score(gts, res)[0],
            **({"meteor": Meteor().compute_score(gts, res)[0]} if meteor else {}),
        }
        assert {key: scores.numbers[key] for key in expected} == pytest.approx(expected)
    cut = [value for key, value in zip(references, cider_scores(*tables[:2]), strict=True) if group[key] == "in-domain"]
    assert found["in-domain"].numbers["cider"] != pytest.approx(sum(cut) / 3), "document frequencies are the group's own"
