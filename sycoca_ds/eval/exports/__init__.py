"""Sets as others export them: WebDatasets of CLIP_benchmark and DataComp, parquet folders of Hugging Face, and DataComp's suite.

In: a data root with a folder a set. Out: the same `reading.Split` and `registry.OfficialSet` that the paper's sets give.

    datacomp (38 sets, metric of each) ── finding (what is in a data root, under which name) ──┬── tars      webdatasets
        └── summary (their average, beside published rows) ── published (such a row)               └── parquet   rows with pictures
"""
