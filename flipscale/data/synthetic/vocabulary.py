"""The vocabulary of rendered scenes: shapes, colours, textures, sizes, relations and classes."""

from __future__ import annotations

RGB = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

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
"""The relations between objects next to each other. The fifth is "inside": an object in a ring."""

# Light, so that every shape's dark outline stands out from the ground, even a white shape on white.
BACKGROUNDS: dict[str, RGB] = {
    "white": (246, 246, 246),
    "gray": (186, 186, 186),
    "beige": (228, 210, 178),
    "mint": (190, 228, 204),
    "lavender": (212, 202, 238),
}
BACKGROUND_KINDS = ("plain", "gradient", "noisy")

CLASSES = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
"""Every (colour, shape) pair. The class index is the index in this tuple."""

# One pair per shape and one per colour: a Latin square's diagonal (the stride 2 is prime to 9). Every shape
# and every colour is then seen in 8 of its 9 pairs.
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
"""The zero-shot prompts around a bare class name. None of them has to choose between "a" and "an"."""
