"""Generated texts against references, by the official scorers.

In: texts by image. Out: numbers, and a reason for each that could not be computed here.
"""
