"""Where in a picture the objects are, and which of them its caption names.

In: a file or folder in one of the layouts below, the pictures of a data set with their captions. Out: `patches.Regions`, which
says of every patch whether it shows an object that is named, one that is not, or the background, and which tokens name what.

    patches ── reading ──┬── world     the drawn world's {split}_regions.json and its label pictures
                         ├── flickr    Flickr30K Entities: boxes, and phrases of five sentences
                         ├── coco      instances_*.json: polygons and run lengths ──┬── names   a category's name in a caption
                         └── voc       SegmentationClass/*.png ─────────────────────┘
                         └── annotated what each of them gives

A new layout: a class with `find` and `load`, and a line in `reading.open_layout`.
"""
