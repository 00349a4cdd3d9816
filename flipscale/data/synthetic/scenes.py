"""Scenes of coloured shapes: their vocabulary, how one is drawn by lot, and how it is put into words.

A scene is plain data in fractions of the image side, so it looks the same at every image size;
`flipscale.data.synthetic.rendering` turns it into pixels. Rows of y grow downwards, as in images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

RGB = tuple[int, int, int]
Cell = tuple[float, float, float, float]
"""A part of the image an object may fill: left, top, right, bottom, in fractions of the side."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent", "diamond")

# Far apart in hue or lightness, so that they survive JPEG's halved colour resolution. No brown and no gray:
# the dark bands of a patterned orange or white object have those colours.
COLOURS: dict[str, RGB] = {
    "red": (220, 28, 36),
    "orange": (255, 136, 0),
    "yellow": (252, 222, 30),
    "green": (24, 150, 56),
    "cyan": (20, 205, 220),
    "blue": (24, 84, 232),
    "purple": (146, 36, 170),
    "pink": (255, 130, 196),
    "white": (252, 252, 252),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "above", "below")
"""Relations between objects side by side; "inside" is the fifth, made from a ring and what it holds."""

# Light, so that every shape's dark outline parts it from the ground, also a white one on white.
BACKGROUNDS: dict[str, RGB] = {
    "white": (246, 246, 246),
    "gray": (186, 186, 186),
    "beige": (228, 210, 178),
    "mint": (190, 228, 204),
    "lavender": (212, 202, 238),
}
BACKGROUND_KINDS = ("plain", "gradient", "noisy")

CLASSES = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
"""Every (colour, shape) pair; the place in the tuple is the class index."""

# One pair a shape and one a colour: a Latin square's diagonal (the stride 2 is prime to 9). Every shape and
# every colour is then seen in 8 of its 9 pairs.
HELD_OUT = tuple((tuple(COLOURS)[(2 * i + 4) % len(COLOURS)], shape) for i, shape in enumerate(SHAPES))
SEEN = tuple(pair for pair in CLASSES if pair not in HELD_OUT)

PROMPT_TEMPLATES = (
    "{}",
    "the {}",
    "one {}",
    "a picture of the {}",
    "an image of one {}",
    "a drawing of one {}",
    "there is one {}",
)
"""Zero-shot prompts around a bare class name; none needs to choose between "a" and "an"."""

# Object widths as fractions of the side: alone in the picture, and within half a picture. A size word
# compares objects of the same kind of scene.
_ALONE = {"small": (0.45, 0.55), "medium": (0.60, 0.74), "large": (0.80, 0.95)}
_IN_HALF = {"small": (0.30, 0.34), "medium": (0.38, 0.42), "large": (0.45, 0.48)}
_FRAMES = ("{}", "{}", "{}", "a picture of {}", "an image of {}", "a drawing of {}", "there is {}")
_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "within"),
    "small": ("small", "little"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big"),
}
_PATTERNS = {"striped": "stripes", "dotted": "dots", "checked": "checks"}


@dataclass(frozen=True)
class SceneObject:
    """One shape: `centre` (x, y) and `extent` (the longer side of its box) in fractions of the image side,
    `rotation` in degrees clockwise, `rgb` the shade really painted, `size` the word for its extent."""

    shape: str
    colour: str
    texture: str
    size: str
    centre: tuple[float, float]
    extent: float
    rotation: float
    rgb: RGB

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """What a caption can say of it; objects of one kind are counted together ("two red stars")."""
        return (self.size, self.texture, self.colour, self.shape)


@dataclass(frozen=True)
class Background:
    """The ground: its named colour, its kind, and the seed of its gradient or noise."""

    colour: str
    kind: str
    rgb: RGB
    seed: int


@dataclass(frozen=True)
class Scene:
    """1 to 3 objects that don't overlap (unless inside a ring). `relation` places the first object relative
    to all the others; None for a single object."""

    objects: tuple[SceneObject, ...]
    relation: str | None
    background: Background


def draw_scene(rng: Random) -> Scene:
    """Draws a scene of seen pairs: three in five single objects, then pairs, then threes."""
    lot = rng.random()
    if lot < 0.60:
        return draw_single(rng, rng.choice(SEEN))
    if lot < 0.65:
        return _draw_inside(rng)
    first = _draw_kind(rng)
    if lot < 0.82:
        return _draw_beside(rng, [first, _draw_kind(rng, unlike=first)])
    if lot < 0.87:
        return _draw_beside(rng, [first, first])
    second = _draw_kind(rng, unlike=first)
    if lot < 0.94:
        return _draw_beside(rng, [first, second, _draw_kind(rng, unlike=second)])
    if lot < 0.97:
        return _draw_beside(rng, [first, second, second])
    return _draw_beside(rng, [first, first, first])


def draw_single(rng: Random, pair: tuple[str, str]) -> Scene:
    """Draws a scene of one object of the given (colour, shape), everything else by lot."""
    kind = (rng.choice(SIZES), _draw_texture(rng), *pair)
    thing = _place(rng, kind, (0.0, 0.0, 1.0, 1.0), _ALONE)
    return Scene((thing,), None, _draw_background(rng))


def caption(rng: Random, scene: Scene) -> str:
    """Puts the scene into words. Colour and shape are always named; the rest is told or left out by lot, and
    what is told is true."""
    groups: list[list[SceneObject]] = []
    for thing in scene.objects:
        if groups and groups[-1][0].kind == thing.kind:
            groups[-1].append(thing)
        else:
            groups.append([thing])
    if len(scene.objects) == 1:
        article = rng.choices(("a", "the", "one", ""), (6, 1, 2, 2))[0]
        text = _phrase(rng, groups[0], article)
        if article:
            text = rng.choice(_FRAMES).format(text)
    else:
        text = rng.choice(_FRAMES).format(_describe_groups(rng, groups, scene.relation))
    if rng.random() < 0.15:
        text += _describe_background(rng, scene.background)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:] + "."
    return text


def _draw_texture(rng: Random) -> str:
    return "plain" if rng.random() < 0.5 else rng.choice(TEXTURES[1:])


def _draw_kind(rng: Random, unlike: tuple[str, ...] | None = None) -> tuple[str, str, str, str]:
    """Size, texture, colour, shape of an object in half a picture, its pair other than that of `unlike`."""
    pair = rng.choice(SEEN if unlike is None else [pair for pair in SEEN if pair != unlike[2:]])
    return (rng.choices(SIZES, (1, 1, 2))[0], _draw_texture(rng), *pair)


def _draw_inside(rng: Random) -> Scene:
    """Something small in the hole of a large ring; the hole is 0.58 of the ring wide (`rendering`)."""
    ring_pair = rng.choice([pair for pair in SEEN if pair[1] == "ring"])
    ring = _place(rng, ("large", _draw_texture(rng), *ring_pair), (0.0, 0.0, 1.0, 1.0), _ALONE)
    pair = rng.choice([pair for pair in SEEN if pair[1] != "ring"])
    # A square's diagonal is 1.41 of its side: 0.38 of the ring still leaves air around it.
    share = rng.uniform(0.32, 0.38)
    held = _paint(rng, ("small", _draw_texture(rng), *pair), ring.centre, share * ring.extent)
    return Scene((held, ring), "inside", _draw_background(rng))


def _draw_beside(rng: Random, kinds: Sequence[tuple[str, str, str, str]]) -> Scene:
    """The first object in one half of the picture, the one or two others in the opposite half."""
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
    """Turns a cell of the layout "first above the others" into the layout of `relation`."""
    left, top, right, bottom = cell
    if relation in ("below", "right of"):
        top, bottom = 1.0 - bottom, 1.0 - top
    return (left, top, right, bottom) if relation in ("above", "below") else (top, left, bottom, right)


def _place(
    rng: Random, kind: tuple[str, str, str, str], cell: Cell, extents: dict[str, tuple[float, float]]
) -> SceneObject:
    """Puts an object of `kind` anywhere in the cell it fits wholly."""
    extent = rng.uniform(*extents[kind[0]])
    room = extent / 2 + 0.01  # a little air between neighbours and at the edge
    left, top, right, bottom = cell
    return _paint(
        rng, kind, (rng.uniform(left + room, right - room), rng.uniform(top + room, bottom - room)), extent
    )


def _paint(
    rng: Random, kind: tuple[str, str, str, str], centre: tuple[float, float], extent: float
) -> SceneObject:
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


def _phrase(rng: Random, group: Sequence[SceneObject], article: str) -> str:
    """A noun phrase for objects of one kind: "a large striped red star", "two red stars with dots"."""
    thing = group[0]
    words = []
    if rng.random() < (0.1 if thing.size == "medium" else 0.3):
        words.append(rng.choice(_WORDS[thing.size]))
    words.append(thing.colour)
    after = ""
    if thing.texture == "plain":
        if rng.random() < 0.15:
            words.insert(-1, "plain")
    elif rng.random() < 0.6:
        if rng.random() < 0.15:
            after = f" with {_PATTERNS[thing.texture]}"
        else:
            words.insert(rng.choice((-1, -1, len(words))), thing.texture)
    if len(group) > 1:
        plural = thing.shape + ("es" if thing.shape == "cross" else "s")
        return " ".join([("two", "three")[len(group) - 2], *words, plural]) + after
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join([article] * bool(article) + [*words, thing.shape]) + after


def _describe_groups(rng: Random, groups: Sequence[Sequence[SceneObject]], relation: str | None) -> str:
    phrases = [_phrase(rng, group, "a") for group in groups]
    if len(groups) == 1:  # two or three of the same
        if len(groups[0]) == 3:
            return phrases[0]
        upright = relation in ("above", "below")
        return phrases[0] + rng.choice(("", ", one above the other" if upright else " side by side"))
    assert relation is not None, "several objects always have a relation"
    others = " and ".join(phrases[1:])
    lot = rng.random()
    if lot < 0.7:
        return f"{phrases[0]} {rng.choice(_WORDS[relation])} {others}"
    if relation == "inside":
        return f"{others} around {phrases[0]}"
    if lot < 0.85 and len(phrases) == 2:
        return f"{phrases[0]} {rng.choice(('next to', 'beside'))} {others}"
    rng.shuffle(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _describe_background(rng: Random, background: Background) -> str:
    words = background.colour
    if background.kind == "noisy" and rng.random() < 0.7:
        words = f"noisy {words}"
    if background.kind == "gradient" and rng.random() < 0.7:
        return f" on a {words} gradient"
    return rng.choice((" on a {} background", " against a {} background", ", {} background")).format(words)
