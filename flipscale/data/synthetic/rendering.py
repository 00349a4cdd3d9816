"""The pixels of a scene: outlined shapes with patterns on a plain, graded or noisy ground."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from flipscale.data.synthetic.scenes import Background, Scene, SceneObject
from flipscale.data.synthetic.vocabulary import RGB

RING_HOLE = 0.58
"""The width of a ring's hole as a fraction of the ring's width."""

OUTLINE = 0.04
"""The width of the dark line around a shape as a fraction of its extent."""

MAX_CORNERS = 12
"""The most corners of a polygon; an outline of more points is a curve."""

INK: RGB = (16, 16, 16)

SUPERSAMPLING = 4
"""Shapes are drawn this many times larger and averaged down, which smooths their edges."""

Points = np.ndarray
"""Corners of a polygon, (n, 2) float64, x to the right and y downwards."""


def render(scene: Scene, image_size: int) -> Image.Image:
    """Draw a scene as an RGB image.

    Objects are drawn in reverse order, so that a ring comes before the object inside it.

    Args:
        scene: The scene.
        image_size: Height and width of the image, in pixels.
    """
    image = _ground(scene.background, image_size)
    for thing in reversed(scene.objects):
        _draw(image, thing)
    return image


def bounding_box(thing: SceneObject, image_size: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of an object, in pixels."""
    corners = _corners(thing, image_size)
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return (float(left), float(top), float(right), float(bottom))


def _draw(image: Image.Image, thing: SceneObject) -> None:
    left, top, whole, filling = _masks(thing, image.width)
    paint = Image.new("RGB", whole.size, INK)
    paint.paste(thing.rgb, (0, 0), filling)

    if thing.texture != "plain":
        shade = tuple(round(0.55 * value) for value in thing.rgb)
        bands = Image.fromarray(_pattern(thing, image.width, whole.size).view(np.uint8) * np.uint8(255))
        paint.paste(shade, (0, 0), ImageChops.darker(bands, filling))

    image.paste(paint.reduce(SUPERSAMPLING), (left, top), whole.reduce(SUPERSAMPLING))


def _masks(thing: SceneObject, image_size: int) -> tuple[int, int, Image.Image, Image.Image]:
    """Return the masks of an object.

    Returns:
        Left and top of the object's box in pixels, and two supersampled masks over that box: the whole
        silhouette, and the silhouette without its outline.
    """
    corners = _corners(thing, image_size)
    left, top = (math.floor(value) for value in corners.min(axis=0))
    right, bottom = (math.ceil(value) for value in corners.max(axis=0))

    whole = Image.new("L", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    pen = ImageDraw.Draw(whole)
    edges = [(corners - (left, top)) * SUPERSAMPLING]
    pen.polygon(_flat(edges[0]), fill=255)
    if thing.shape == "ring":
        middle = (edges[0].min(axis=0) + edges[0].max(axis=0)) / 2
        edges.append(middle + (edges[0] - middle) * RING_HOLE)
        pen.polygon(_flat(edges[1]), fill=0)

    filling = whole.copy()
    pen = ImageDraw.Draw(filling)
    for edge in edges:
        # Half of a line along the edge is within the shape; two more corners close it. Joints are slow, and
        # a curve of many corners has no visible gaps without them.
        width = round(2 * OUTLINE * thing.extent * image_size * SUPERSAMPLING)
        joint = "curve" if len(edge) <= MAX_CORNERS else None
        pen.line(_flat(np.vstack([edge, edge[:2]])), fill=0, width=width, joint=joint)

    return left, top, whole, filling


def _flat(points: Points) -> list[float]:
    return points.ravel().tolist()


def _corners(thing: SceneObject, image_size: int) -> Points:
    """Return the outline in pixels: rotated, then scaled so that the longer side of its box is the extent."""
    angle = math.radians(thing.rotation)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])

    points = _outline(thing.shape) @ turn
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / (high - low).max()
    return (points * thing.extent + thing.centre) * image_size


@functools.cache
def _outline(shape: str) -> Points:
    """Return the outline of a shape around the origin, of any scale."""
    match shape:
        case "circle" | "ring":
            points = _arc(1.0, 0.0, 360.0, 96)
        case "square":
            points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
        case "diamond":
            points = [(0, -1), (0.66, 0), (0, 1), (-0.66, 0)]
        case "triangle":
            points = _arc(1.0, -90.0, 270.0, 3)
        case "star":
            tips = _arc(1.0, -90.0, 270.0, 5)
            dents = _arc(0.42, -54.0, 306.0, 5)
            points = [point for pair in zip(tips, dents, strict=True) for point in pair]
        case "cross":
            arm = [(-0.32, -1.0), (0.32, -1.0), (0.32, -0.32)]
            points = [_quarter_turns(point, turns) for turns in range(4) for point in arm]
        case "heart":
            points = [_heart(2 * math.pi * step / 96) for step in range(96)]
        case "crescent":
            # A disc without a smaller one moved to the right: the outer arc, then the inner one back.
            points = _arc(1.0, 50.0, 310.0, 64) + _arc(0.83, 292.6, 67.4, 64, centre_x=0.325)
        case _:
            raise AssertionError(f"no outline for {shape}")
    return np.array(points, dtype=np.float64)


def _arc(
    radius: float, start: float, end: float, count: int, centre_x: float = 0.0
) -> list[tuple[float, float]]:
    """Return `count` points from the angle `start` towards `end` (degrees, clockwise from the right)."""
    angles = [math.radians(start + (end - start) * step / count) for step in range(count)]
    return [(centre_x + radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _quarter_turns(point: tuple[float, float], turns: int) -> tuple[float, float]:
    x, y = point
    for _ in range(turns):
        x, y = -y, x
    return (x, y)


def _heart(angle: float) -> tuple[float, float]:
    """Return a point of the well-known heart curve in sines and cosines, with the tip downwards."""
    x = 16 * math.sin(angle) ** 3
    y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
    return (x, -y)


def _pattern(thing: SceneObject, image_size: int, size: tuple[int, int]) -> np.ndarray:
    """Return where a patterned object is dark, as (height, width) bool at the supersampled resolution.

    At most about half of the object is dark, so that its named colour prevails.
    """
    # A period is at least a tenth of the image: JPEG's 8-pixel blocks blur finer patterns at 64 px.
    period = max(thing.extent / 4, 0.1) * image_size * SUPERSAMPLING
    angle = math.radians(thing.rotation)
    x = (np.arange(size[0], dtype=np.float32) - size[0] / 2) / np.float32(period)
    y = (np.arange(size[1], dtype=np.float32)[:, None] - size[1] / 2) / np.float32(period)

    along = _fraction(x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle)))
    if thing.texture == "striped":
        return along < 0.42

    across = _fraction(y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle)))
    if thing.texture == "checked":
        return (along < 0.5) == (across < 0.5)
    return (along - 0.5) ** 2 + (across - 0.5) ** 2 < 0.34**2


def _fraction(values: np.ndarray) -> np.ndarray:
    return values - np.floor(values)


def _ground(background: Background, image_size: int) -> Image.Image:
    """Draw the background."""
    if background.kind == "plain":
        return Image.new("RGB", (image_size, image_size), background.rgb)

    rng = np.random.default_rng(background.seed)
    colour = np.array(background.rgb, dtype=np.float32)

    if background.kind == "gradient":
        end = colour * rng.uniform(0.65, 0.85)
        angle = rng.uniform(0, 2 * math.pi)
        steps = np.linspace(-0.5, 0.5, image_size, dtype=np.float32)
        slope = steps[None, :] * np.float32(math.cos(angle)) + steps[:, None] * np.float32(math.sin(angle))
        share = (slope - slope.min()) / (slope.max() - slope.min())
        pixels = colour + share[..., None] * (end - colour)
    else:
        grain = rng.standard_normal((image_size, image_size, 1), dtype=np.float32)
        pixels = colour + grain * np.float32(rng.uniform(6, 16))

    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
