"""A look inside a model: `sycoca explore RUN` serves one page on this machine (docs/explore.md).

In: a run, also one that is still training, a checkpoint or an exported folder; pictures and captions that a person gives. Out: what
the evaluation computes of them, one picture at a time, as lines of JSON and a page.

    command (options) -> keeper (the newest model) + samples (what it is compared with) -> looking (answers) -> server (the page)
"""
