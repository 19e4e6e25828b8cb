"""A trained model for people who use it: `sycoca_ds.load`, and the commands `caption` and `search` (docs/inference.md).

In: a run, a checkpoint or an exported folder, and pictures as files, Pillow's images or arrays. Out: vectors, captions, rebuilt
pictures, scores of patches and words: what the evaluation computes, by its own code (`eval/runner/bench.py`).

    pictures (whatever is given -> RGB) -> model (what can be asked), answers (what it gives) -> caption, search (commands)
"""
