"""open_clip's CoCa and ours, both ways, strictly; no file is read and open_clip is not needed (docs/open_clip.md).

In: its JSON of a model (`model_cfg`), its state dict. Out: our configuration, our state dict; and back.
"""
