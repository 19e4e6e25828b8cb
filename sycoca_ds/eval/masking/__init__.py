"""What attentive masks have to do with the caption, as pure functions on scores.

In: scores of patches, masks, regions. Out: numbers. Used by the task `masking` and by every validation of a training.
"""
