"""Random views against a direct reading of the algorithm."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flipscale.config import Augmentation
from flipscale.data.order.lanes import uniforms
from flipscale.data.samples.augment import DRAWS, View, random_views

SIDES = st.integers(8, 3000)
POSITIONS = st.integers(0, 2**40)
AREAS = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(lambda pair: (min(pair), max(pair)))


def numbers_of(position: int) -> np.ndarray:
    return uniforms(7, np.array([position], dtype=np.int64), DRAWS)[0]


def one_view(width: int, height: int, numbers: np.ndarray, augmentation: Augmentation) -> View:
    (view,) = random_views(np.array([width]), np.array([height]), numbers[None], augmentation)
    return view


def slow_box(
    width: int, height: int, numbers: list[float], low: float, high: float
) -> tuple[int, ...] | None:
    """The first of ten attempts that fits the image, if any."""
    for attempt in range(10):
        area, aspect, x, y = numbers[4 * attempt : 4 * attempt + 4]
        pixels = width * height * (low + (high - low) * area)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    return None


@given(SIDES, SIDES, POSITIONS, AREAS)
@example(8, 3000, 0, (0.5, 1.0))
@example(3000, 8, 0, (0.5, 1.0))
@example(8, 8, 0, (1.0, 1.0))
def test_the_box_is_that_of_the_slow_reference(width, height, position, areas):
    view = one_view(width, height, numbers_of(position), Augmentation(crop_area=areas))
    left, top, right, bottom = view.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    expected = slow_box(width, height, numbers_of(position).tolist(), *areas)
    w, h = right - left, bottom - top
    if expected is not None:
        assert view.box == expected
        # Whole pixels move either side by at most a half.
        slack = (w + h) / 2 + 1
        assert areas[0] * width * height - slack <= w * h <= areas[1] * width * height + slack
    else:
        # The whole image, or as much of its longer side as 3:4 or 4:3 allows, from the middle.
        assert w == (round(height * 4 / 3) if width / height > 4 / 3 else width)
        assert h == (round(width * 4 / 3) if width / height < 3 / 4 else height)
        assert abs(left - (width - right)) <= 1
        assert abs(top - (height - bottom)) <= 1


@given(SIDES, SIDES, POSITIONS)
def test_flipping_never_moves_the_box(width, height, position):
    numbers = numbers_of(position)
    flipped = one_view(width, height, numbers, Augmentation(flip=True))
    straight = one_view(width, height, numbers, Augmentation(flip=False))
    assert flipped.box == straight.box
    assert not straight.flip
    assert flipped.flip == (numbers[-1] < 0.5)


def test_views_are_spread_evenly():
    """Over 4,000 positions: half flipped, areas as they should be, centres all over the image."""
    count = 4000
    draws = uniforms(0, np.arange(count, dtype=np.int64), DRAWS)
    sides = np.full(count, 1000)
    views = random_views(sides, sides, draws, Augmentation())
    boxes = np.array([view.box for view in views])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e6
    assert abs(sum(view.flip for view in views) / count - 0.5) < 4 * 0.5 / math.sqrt(count)
    assert areas.min() + 1e-3 >= 0.5
    assert areas.max() <= 1.0
    # An area share a > 3/4 fits a square only with an aspect in a..1/a, so with probability
    # -ln(a) / ln(4/3): the mean over 0.5 to 1, weighted by it, is 0.6915.
    assert abs(areas.mean() - 0.6915) < 4 * areas.std() / math.sqrt(count)
    centres = (boxes[:, 0] + boxes[:, 2]) / 2
    assert abs(centres.mean() - 500) < 5


@settings(max_examples=50)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20), POSITIONS, AREAS)
def test_the_views_of_many_images_are_those_of_each(sizes, position, areas):
    augmentation = Augmentation(crop_area=areas)
    draws = uniforms(7, position + np.arange(len(sizes), dtype=np.int64), DRAWS)
    widths, heights = np.array(sizes).T
    together = random_views(widths, heights, draws, augmentation)
    assert together == [
        one_view(width, height, numbers, augmentation)
        for (width, height), numbers in zip(sizes, draws, strict=True)
    ]
