"""The demo world: captions tell everything, pixels and masks show it, labels and answers are right."""

import numpy as np

from data_pipeline.world.drawn.canvas import OVERSAMPLE
from data_pipeline.world.drawn.demo_pixels import BACKGROUND_RGB, CELL, COLOR_RGB, draw, paint
from data_pipeline.world.drawn.demo_scenes import BACKGROUNDS, CLASSES, COLORS, PLACES, SHAPES, questions, sample_scenes


def parse(caption: str) -> tuple:
    """A caption back into (background, [(size, color, shape, place)]): it must tell everything."""
    words = caption.replace(",", "").replace(" and ", " ").split()
    place = next(i for i in range(len(words)) if words[i] == "background")
    background = words[place - 1]
    rest = " ".join(words[: place - 3] + words[place + 1 :])
    things = []
    for part in rest.split("a ")[1:] if not rest.startswith("a ") else rest[2:].split(" a "):
        size, color, shape, *where = part.split()
        things.append((size, color, shape, " ".join(where)))
    return background, things


def test_captions_tell_the_whole_scene():
    for scene in sample_scenes(400, seed=3):
        background, things = parse(scene.caption)
        assert background == BACKGROUNDS[scene.background]
        expected = [
            ("large" if thing is scene.main else "small", COLORS[thing.color], SHAPES[thing.shape], PLACES[thing.cell])
            for thing in (scene.main, *scene.others)
        ]
        assert things == expected
        assert 11 <= len(scene.caption.split()) <= 26
        assert CLASSES[scene.label] == f"{COLORS[scene.main.color]} {SHAPES[scene.main.shape]}"


def test_all_three_counts_and_all_classes_occur():
    scenes = sample_scenes(2000, seed=1)
    counts = np.bincount([1 + len(scene.others) for scene in scenes], minlength=4) / len(scenes)
    assert counts[0] == 0 and 0.05 < counts[1] < 0.15 and 0.38 < counts[2] < 0.52 and 0.38 < counts[3] < 0.52
    assert {scene.label for scene in scenes} == set(range(len(CLASSES)))


def test_pixels_show_what_the_description_says():
    """In the middle of its cell an object has its colour (a ring shows the background there)."""
    cell = CELL / OVERSAMPLE
    for number, scene in enumerate(sample_scenes(60, seed=2)):
        picture = draw(scene, (number,)).astype(float)
        for thing in (scene.main, *scene.others):
            row, column = divmod(thing.cell, 3)
            y, x = int((row + 0.5) * cell), int((column + 0.5) * cell)
            seen = picture[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
            hole = SHAPES[thing.shape] == "ring"
            expected = BACKGROUND_RGB[BACKGROUNDS[scene.background]] if hole else COLOR_RGB[COLORS[thing.color]]
            assert np.abs(seen - expected).max() < 25, scene.caption


def test_two_pictures_of_one_description_differ_and_one_seed_repeats():
    scene = sample_scenes(1, seed=0)[0]
    assert np.array_equal(draw(scene, (1, 2)), draw(scene, (1, 2)))
    assert not np.array_equal(draw(scene, (1, 2)), draw(scene, (1, 3)))


def test_answers_follow_from_the_caption():
    for scene in sample_scenes(200, seed=4):
        background, things = parse(scene.caption)
        pairs = {f"{color} {shape}" for _, color, shape, _ in things}
        asked = questions(scene, 0)
        answers = {(entry["kind"], entry["question"]): entry["answer"] for entry in asked}
        assert answers["color", "what color is the large object?"] == things[0][1]
        assert answers["shape", "what shape is the large object?"] == things[0][2]
        assert answers["background", "what color is the background?"] == background
        assert answers["count", "how many objects are there?"] == ("one", "two", "three")[len(things) - 1]
        assert things[0][3].endswith(answers["place", f"where is the large {things[0][2]}?"])
        exists = [entry for entry in asked if entry["kind"] == "exists"]
        assert [entry["answer"] for entry in exists] == ["yes", "no"]
        for entry in exists:
            assert (entry["question"][len("is there a ") : -1] in pairs) == (entry["answer"] == "yes")


def test_every_object_and_the_background_are_named_and_spans_are_their_words():
    for scene in sample_scenes(300, seed=6):
        background, things = parse(scene.caption)
        regions = scene.regions("m.png")
        assert [entry["label"] for entry in regions["objects"]] == list(range(1, len(things) + 1))
        for entry, (size, color, shape, place) in zip(regions["objects"], things, strict=True):
            start, end = entry["span"]
            assert entry["named"] and entry["name"] == f"{color} {shape}"
            assert (
                scene.caption[:end].endswith(f"a {size} {color} {shape}") and scene.caption[start:end] == f"{size} {color} {shape}"
            )
            assert scene.caption[end:].startswith(f" {place}")
        start, end = regions["background"]["span"]
        assert regions["background"]["named"] and regions["background"]["name"] == background
        assert scene.caption[start:end] == f"{background} background"


def test_masks_show_each_object_in_its_cell_and_nothing_else():
    """Each pixel is nearest in colour to what its label says, beside edges; an object's pixels lie around its cell."""
    side = CELL / OVERSAMPLE
    for number, scene in enumerate(sample_scenes(60, seed=2)):
        picture, mask = paint(scene, (number,))
        assert np.array_equal(picture, draw(scene, (number,)))
        colors = np.array([BACKGROUND_RGB[scene.background_name], *(COLOR_RGB[COLORS[thing.color]] for thing in scene.things)])
        y, x = np.mgrid[:64, :64] + 0.5
        for label, thing in enumerate(scene.things, 1):
            row, column = divmod(thing.cell, 3)
            here = mask == label
            assert abs(y[here].mean() - (row + 0.5) * side) < 5 and abs(x[here].mean() - (column + 0.5) * side) < 2
            cell = (y // side == row) & (x // side == column)
            assert (here & cell).sum() > (0.9 if label > 1 else 0.85) * here.sum()
        padded = np.pad(mask, 1, mode="edge")
        around = np.stack([padded[i : i + 64, j : j + 64] for i in range(3) for j in range(3)])
        inside = (around == mask).all(0)
        nearest = np.abs(picture[:, :, None].astype(float) - colors).sum(3).argmin(2)
        assert (colors[nearest] == colors[mask])[inside].all(), scene.caption
        assert set(np.unique(mask)) == set(range(len(scene.things) + 1))
