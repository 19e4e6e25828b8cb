"""A linear probe: how much of what a picture shows can be read off frozen features by a linear classifier?

In: pictures with classes to train on (`data`), those of the evaluation to test on. Out: the classifier of the C that is best on
validation pictures, what it gets right, and every step of the way there.

    data ── features ── fitting ── scoring ── tasks/linear_probe
    pictures  vectors    C, weights  numbers

Protocol: CLIP's (Radford et al. 2021, A.3).
"""
