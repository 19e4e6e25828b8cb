"""Weights out of a run, for this project, for open_clip or for a hub of models; and open_clip's in (docs/open_clip.md).

In: a checkpoint, an exported folder or open_clip's files. Out: a folder with weights, configuration, tokenizer and model card,
whose answers were compared with the model's before it got its name.

    options ── source (open_clip_files) -> open_clip_folder, or engine/checkpoint/exported -> card (about) -> proof
"""

KEPT = "nothing"
"""What Ctrl-C leaves of the command."""
