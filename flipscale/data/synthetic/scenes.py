"""Scenes of coloured shapes, and how one is drawn at random.

A scene is plain data in fractions of the image side, so that it looks the same at every image size.
`flipscale.data.synthetic.rendering` turns it into pixels. Rows of y grow downwards, as in images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from flipscale.data.synthetic.vocabulary import (
    BACKGROUND_KINDS,
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    RGB,
    SEEN,
    SIZES,
    TEXTURES,
)

Cell = tuple[float, float, float, float]
"""A part of the image that an object may fill: left, top, right, bottom, in fractions of the side."""

Kind = tuple[str, str, str, str]
"""The size, texture, colour and shape of an object, which are all that a caption can say of it."""

# Object widths as fractions of the side: a single object, and one within half a picture. A size
# word compares objects of the same kind of scene.
_SINGLE = {"small": (0.45, 0.55), "medium": (0.60, 0.74), "large": (0.80, 0.95)}
_IN_HALF = {"small": (0.30, 0.34), "medium": (0.38, 0.42), "large": (0.45, 0.48)}


@dataclass(frozen=True)
class SceneObject:
    """One shape in a scene."""

    shape: str
    colour: str
    texture: str
    size: str  # the word for its extent
    centre: tuple[float, float]  # x and y, in fractions of the image side
    extent: float  # the longer side of its box, in fractions of the image side
    rotation: float  # degrees clockwise
    rgb: RGB  # the shade that is painted

    @property
    def kind(self) -> Kind:
        """The kind of the object. Captions count objects of one kind together ("two red stars")."""
        return (self.size, self.texture, self.colour, self.shape)


@dataclass(frozen=True)
class Background:
    """The background: its named colour, kind and shade, and the seed of its gradient or noise."""

    colour: str
    kind: str
    rgb: RGB
    seed: int


@dataclass(frozen=True)
class Scene:
    """A scene of 1 to 3 objects that do not overlap, unless one is inside a ring."""

    objects: tuple[SceneObject, ...]
    relation: str | None  # of the first object to all others; None for a single object
    background: Background


def draw_scene(rng: Random) -> Scene:
    """Draw a scene of seen (colour, shape) pairs: 60 % single objects, 30 % two and 10 % three objects."""
    lot = rng.random()

    if lot < 0.60:
        return draw_single(rng, rng.choice(SEEN))
    if lot < 0.65:
        return _draw_inside(rng)

    first = _draw_kind(rng)
    if lot < 0.82:
        return _draw_next_to(rng, [first, _draw_kind(rng, unlike=first)])
    if lot < 0.87:
        return _draw_next_to(rng, [first, first])

    second = _draw_kind(rng, unlike=first)
    if lot < 0.94:
        return _draw_next_to(rng, [first, second, _draw_kind(rng, unlike=second)])
    if lot < 0.97:
        return _draw_next_to(rng, [first, second, second])
    return _draw_next_to(rng, [first, first, first])


def draw_single(rng: Random, pair: tuple[str, str]) -> Scene:
    """Draw a scene of one object of a (colour, shape) pair; everything else is random."""
    kind = (rng.choice(SIZES), _draw_texture(rng), *pair)
    thing = _place(rng, kind, (0.0, 0.0, 1.0, 1.0), _SINGLE)
    return Scene((thing,), None, _draw_background(rng))


def _draw_texture(rng: Random) -> str:
    return "plain" if rng.random() < 0.5 else rng.choice(TEXTURES[1:])


def _draw_kind(rng: Random, unlike: Kind | None = None) -> Kind:
    """Draw the kind of an object in half a picture; its (colour, shape) differs from that of `unlike`."""
    pair = rng.choice(SEEN if unlike is None else [pair for pair in SEEN if pair != unlike[2:]])
    return (rng.choices(SIZES, (1, 1, 2))[0], _draw_texture(rng), *pair)


def _draw_inside(rng: Random) -> Scene:
    """Draw a small object in the hole of a large ring; the hole is 0.58 of the ring wide (`rendering`)."""
    ring_pair = rng.choice([pair for pair in SEEN if pair[1] == "ring"])
    ring = _place(rng, ("large", _draw_texture(rng), *ring_pair), (0.0, 0.0, 1.0, 1.0), _SINGLE)

    pair = rng.choice([pair for pair in SEEN if pair[1] != "ring"])
    # A square's diagonal is 1.41 of its side: 0.38 of the ring still leaves a gap around it.
    share = rng.uniform(0.32, 0.38)
    inner = _paint(rng, ("small", _draw_texture(rng), *pair), ring.centre, share * ring.extent)
    return Scene((inner, ring), "inside", _draw_background(rng))


def _draw_next_to(rng: Random, kinds: Sequence[Kind]) -> Scene:
    """Draw the first object in one half of the picture, and the other one or two in the opposite half."""
    relation = rng.choice(RELATIONS)
    if len(kinds) == 2:
        # Both in one band, so that they are further apart along the relation's axis than across it.
        middle = rng.uniform(0.27, 0.73)
        cells = [(middle - 0.27, 0.0, middle + 0.27, 0.5), (middle - 0.27, 0.5, middle + 0.27, 1.0)]
    else:
        cells = [(0.2, 0.0, 0.8, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)]

    things = tuple(
        _place(rng, kind, _turn(cell, relation), _IN_HALF) for kind, cell in zip(kinds, cells, strict=True)
    )
    return Scene(things, relation, _draw_background(rng))


def _turn(cell: Cell, relation: str) -> Cell:
    """Turn a cell of the layout "first above the others" into the layout of `relation`."""
    left, top, right, bottom = cell
    if relation in ("below", "right of"):
        top, bottom = 1.0 - bottom, 1.0 - top
    return (left, top, right, bottom) if relation in ("above", "below") else (top, left, bottom, right)


def _place(rng: Random, kind: Kind, cell: Cell, extents: dict[str, tuple[float, float]]) -> SceneObject:
    """Place an object of `kind` at random, entirely within the cell."""
    extent = rng.uniform(*extents[kind[0]])
    room = extent / 2 + 0.01  # a small margin between neighbours and at the edge
    left, top, right, bottom = cell

    return _paint(
        rng, kind, (rng.uniform(left + room, right - room), rng.uniform(top + room, bottom - room)), extent
    )


def _paint(rng: Random, kind: Kind, centre: tuple[float, float], extent: float) -> SceneObject:
    size, texture, colour, shape = kind
    rotation = rng.uniform(-15.0, 15.0)

    return SceneObject(
        shape, colour, texture, size, centre, extent, rotation, _shade(rng, COLOURS[colour], 10)
    )


def _draw_background(rng: Random) -> Background:
    name = rng.choice(tuple(BACKGROUNDS))
    kind = rng.choices(BACKGROUND_KINDS, (2, 1, 1))[0]
    return Background(name, kind, _shade(rng, BACKGROUNDS[name], 4), rng.getrandbits(32))


def _shade(rng: Random, rgb: RGB, spread: int) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in rgb)
    return (red, green, blue)
