"""Two worlds of drawn scenes: `demo`, which 400 steps learn, and `hard`, which they do not.

In: a number of scenes and a seed. Out: descriptions of them, their pictures and masks, captions, classes, questions. `worlds` is
the way in: by name, all that `on_disk` needs of a world.

    scene (what every scene has: a caption that knows which words name which object)
    canvas (outlines of shapes -> pixels, and which object is seen where)
    demo_scenes -> demo_pixels                        one large object and small ones on a grid, all of them named
    hard_layout -> hard_scenes -> hard_pixels         two to five objects placed freely, some of them named, before
                                   textures           patterns
    worlds (demo, hard)
"""
