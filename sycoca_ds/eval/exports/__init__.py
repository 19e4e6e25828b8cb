"""Sets as others export them: WebDatasets of CLIP_benchmark and DataComp, parquet folders of Hugging Face, and DataComp's suite.

In: a data root with a folder a set. Out: the same `reading.Split` and `registry.OfficialSet` that the paper's sets give.

    datacomp (the suite, its average) ──┬── finding (what is in a data root, under which name) ──┬── tars       WebDatasets
                                        ├── tasklist (38 sets, the metric of each)               ├── parquet    rows with pictures
                                        └── published (rows to stand beside)                     └── winogavil  pictures in lists
"""
