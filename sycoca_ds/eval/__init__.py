"""Evaluation of a model: numbers with what chance and controls give beside them, and a page.

In: a live model with its configuration and tokenizer, a data set folder, and what a task needs beside it (labels, regions,
compositions).
Out: OUT/results.json, OUT/tasks/, OUT/samples/, report.html.

    suite ── registry ── tasks/<task> ──┬── runner/    the model on the pictures
      │                     │           ├── stats/     intervals, controls, pairs
      │                     task        ├── scorers/   captions against references
      │                                 ├── masking/   what masks have to do with the caption
      │                                 ├── alignment/   what patches and words have to do with each other
      │                                 ├── regions/   where in a picture the objects are
      │                                 └── compositions/   captions that nearly fit
      report/

A new task: a file in tasks/ with its `TASK`, and its name in `registry`. Nothing here knows engine/, whose validation uses the same
functions.
"""
