"""Rendered scenes: the picture shows what the scene says, and objects can be recognized."""

import io
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flipscale.data.synthetic import rendering, scenes, vocabulary
from flipscale.data.synthetic.rendering import bounding_box, render
from flipscale.data.synthetic.samples import make_sample


def coverage(thing, image_size: int, *, outline: bool = True) -> np.ndarray:
    """Return how much of each pixel an object covers: (image_size, image_size) uint8, 255 = all of it."""
    canvas = Image.new("L", (image_size, image_size))
    left, top, whole, filling = rendering._masks(thing, image_size)
    canvas.paste((whole if outline else filling).reduce(rendering.SUPERSAMPLING), (left, top))
    return np.asarray(canvas)


def centre(thing):
    left, top, right, bottom = thing["box"]
    return (left + right) / 2, (top + bottom) / 2


def holds(relation, one, other):
    """Return whether the boxes of two objects confirm "one RELATION other"."""
    (x, y), (other_x, other_y) = centre(one), centre(other)
    box, other_box = one["box"], other["box"]
    return {
        "left of": box[2] < other_box[0] and x < other_x,
        "right of": box[0] > other_box[2] and x > other_x,
        "above": box[3] < other_box[1] and y < other_y,
        "below": box[1] > other_box[3] and y > other_y,
        "inside": other_box[0] < box[0] < box[2] < other_box[2]
        and other_box[1] < box[1] < box[3] < other_box[3],
    }[relation]


def test_relations_hold_in_the_picture(splits):
    seen = Counter()
    for sample in splits["train"] + splits["val"]:
        first, *others = sample["json"]["objects"]
        relation = sample["json"]["relation"]
        seen[relation] += 1
        assert (relation is None) == (not others)
        for other in others:
            assert holds(relation, first, other), sample["json"]
            if relation != "inside":
                dx, dy = np.abs(np.subtract(centre(first), centre(other)))
                assert len(others) == 2 or (dx > dy) == (relation in ("left of", "right of"))
    assert set(seen) == {None, "inside", *vocabulary.RELATIONS}
    assert 0.54 < seen[None] / 700 < 0.66  # 0.6 +- 3 standard deviations hold one object


def palette_shares(pixels):
    """Return the share of the pixels (n, 3) that are nearest to each named colour."""
    palette = np.array(list(vocabulary.COLOURS.values()))
    nearest = ((pixels[:, None, :].astype(int) - palette) ** 2).sum(-1).argmin(1)
    return dict(
        zip(vocabulary.COLOURS, np.bincount(nearest, minlength=len(palette)) / len(pixels), strict=True)
    )


@pytest.mark.parametrize("split", ["train", "test", "test_heldout"])
def test_painted_colour_is_the_named_one_after_jpeg(split):
    for number in range(150):
        scene, text, jpeg = make_sample(0, split, number, 64)
        picture = np.asarray(Image.open(io.BytesIO(jpeg)))
        for thing in scene.objects:
            pixels = picture[coverage(thing, 64, outline=False) == 255]
            # Bands of a pattern are darker than the named colour: its brighter half shows it.
            light = pixels.sum(1)
            shares = palette_shares(pixels[light >= np.median(light)] if thing.texture != "plain" else pixels)
            assert max(shares, key=lambda name: shares[name]) == thing.colour, (number, text, shares)


def test_dark_line_separates_every_object_from_its_ground():
    for number in range(60):
        scene, text, _ = make_sample(0, "train", number, 64)
        picture = np.asarray(render(scene, 256)).mean(-1)
        for thing in scene.objects:
            filling = coverage(thing, 256, outline=False)
            line = picture[(coverage(thing, 256) == 255) & (filling == 0)]
            assert len(line) > 0.1 * (filling == 255).sum(), text
            # The darkest ground is gray at the dark end of a gradient, 0.65 * 182 = 118.
            assert line.max() < 60, text


def test_shapes_differ_in_silhouette():
    """No two shapes of the same extent share 90 % of their area, at the smallest size of a single object."""

    def silhouette(shape, rotation):
        thing = scenes.SceneObject(shape, "red", "plain", "small", (0.5, 0.5), 0.45, rotation, (255, 0, 0))
        return coverage(thing, 64) / 255

    for i, one in enumerate(vocabulary.SHAPES):
        for other in vocabulary.SHAPES[i + 1 :]:
            for turn in (-15, 0, 15):
                a, b = silhouette(one, 0), silhouette(other, turn)
                assert np.minimum(a, b).sum() / np.maximum(a, b).sum() < 0.9, (one, other, turn)


@given(seed=st.integers(0, 2**32), size=st.sampled_from([16, 33, 64, 130]))
def test_objects_are_inside_the_picture_and_apart(seed, size):
    scene = scenes.draw_scene(Random(seed))
    picture = render(scene, size)
    assert picture.size == (size, size)
    assert picture.mode == "RGB"
    for thing in scene.objects:
        left, top, right, bottom = bounding_box(thing, size)
        assert -1e-9 <= left < right <= size + 1e-9
        assert -1e-9 <= top < bottom <= size + 1e-9
        assert max(right - left, bottom - top) == pytest.approx(thing.extent * size)
        assert thing.extent >= (0.45 if len(scene.objects) == 1 else 0.25)
    covered = np.sum([coverage(thing, 512) > 0 for thing in scene.objects], axis=0)
    assert covered.max() == 1  # no object hides another one, not even a ring the object inside it


def test_positions_sizes_and_grounds_of_the_test_split_vary():
    drawn = [make_sample(0, "test", number, 64)[0] for number in range(300)]
    x, y = np.array([scene.objects[0].centre for scene in drawn]).T
    assert min(x.std(), y.std()) > 0.08
    extents = np.array([scene.objects[0].extent for scene in drawn])
    assert extents.min() < 0.5
    assert extents.max() > 0.9
    assert len({(scene.background.colour, scene.background.kind) for scene in drawn}) == 15
    assert {scene.objects[0].texture for scene in drawn} == set(vocabulary.TEXTURES)
