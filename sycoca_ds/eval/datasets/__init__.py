"""The paper's sets in the layouts in which they are published.

In: a data root with a folder a set. Out: `reading.Split`, pictures by number with their captions or labels; findings of what is
there; or, for the tasks of the evaluation, an `official.OfficialCollection`.

    command ── check ──┐                                 ┌── captioned   Karpathy's json, COCO's, NoCaps
                       registry ── one layout a set ──┼── folders     a folder a class
    official ── names ─┘                                 ├── arrays      CIFAR, STL-10, MNIST
                                                         ├── lists       lists beside a folder of pictures
                                                         └── reading     what each of them gives

A new set: a line in `registry.SETS`, and a class with `needs` and `read` where no layout fits.
"""
