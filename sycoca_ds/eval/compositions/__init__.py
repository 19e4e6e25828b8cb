"""Pictures with a caption that fits and one that nearly does: benchmarks of whether a model reads more than a bag of words.

In: `NAME=FOLDER` of SugarCrepe, Winoground or ARO as they are published. Out: for each item, which caption the model takes for the
picture's, by four scores, and what that comes to beside chance and beside a model that never looks.

    reading ──┬── sugarcrepe      seven json files on COCO's val2017     items ── scoring    what the model says of each
              ├── winoground      two pictures, two captions               │         │
              └── aro             parts of Visual Genome's pictures        └── accuracy      wins, means over groups, intervals

A new benchmark: a reader, its line in `reading.READERS`, its numbers in `wording`.
"""
