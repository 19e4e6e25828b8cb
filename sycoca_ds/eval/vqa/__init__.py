"""Questions on pictures, answered by a model that was fine-tuned for it (docs/evaluation.md).

In: questions (`items`), the answers to choose from (`candidates`), a model. Out: its answers (`answering`), scored as the official
evaluation does (`normalisation`, `accuracy`), and files for its server (`submission`).
"""
