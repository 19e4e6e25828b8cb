"""Pieces of a long task: found again with the same key, made again with another, or where a file is damaged."""

import numpy as np

from sycoca_ds.eval.kept import Kept, pieces


def test_pieces_cover_everything_once():
    for count, size in ((0, 4), (1, 4), (4, 4), (9, 4), (8, 4)):
        found = list(pieces(count, size))
        assert [place for _, among in found for place in among] == list(range(count))
        assert [name for name, _ in found] == [f"{number:05d}" for number in range(len(found))]
        assert all(0 < len(among) <= size for _, among in found)


def test_what_is_kept_is_not_made_again(tmp_path):
    made = []

    def arrays():
        made.append("arrays")
        return {"x": np.arange(3) + len(made), "names": np.array(["a", "bc"])}

    def value():
        made.append("value")
        return {"captions": ["\u2028 a", ""], "number": 0.1 + len(made)}

    kept = Kept(tmp_path / "kept", "one")
    first = kept.arrays("a", arrays), kept.value("v", value)
    again = Kept(tmp_path / "kept", "one")
    found = again.arrays("a", arrays), again.value("v", value)
    assert made == ["arrays", "value"] and found[1] == first[1]
    assert {name: list(x) for name, x in found[0].items()} == {name: list(x) for name, x in first[0].items()}
    other = Kept(tmp_path / "kept", "two")
    other.arrays("a", arrays), other.value("v", value)
    assert made == ["arrays", "value"] * 2
    for name in ("a.npz", "v.json"):
        path = tmp_path / "kept" / name
        path.write_bytes(path.read_bytes()[:20])
    other.arrays("a", arrays), other.value("v", value)
    assert made == ["arrays", "value"] * 3
    Kept(None, "two").arrays("a", arrays)
    assert made[-1] == "arrays" and len(made) == 7
