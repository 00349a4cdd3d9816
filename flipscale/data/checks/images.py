"""The check of an image: decoded as training does, in a process of its own that it may crash."""

from __future__ import annotations

from functools import partial

from flipscale.data.samples.augment import View
from flipscale.data.samples.decode import open_image, render
from flipscale.data.samples.isolation import IsolatedDecoder


def shorter_sides(max_image_pixels: int) -> IsolatedDecoder:
    """Return a decoder of images that answers with the shorter side, in pixels.

    Args:
        max_image_pixels: Larger images are unusable.
    """
    return IsolatedDecoder(partial(_shorter_side, max_image_pixels))


def _shorter_side(max_image_pixels: int, data: bytes) -> int:
    image = open_image(data, max_image_pixels)
    width, height = image.size
    render(image, View((0, 0, width, height), False), 8, "bilinear")

    return min(width, height)
