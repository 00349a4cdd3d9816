"""From bytes to pixels and text, with a reason for everything that cannot be used."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from flipscale.data.augment import View

MIN_SIDE = 8  # pixels; below this an image shows nothing

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class BadSample(Exception):
    """A sample that training cannot use; the message is the reason that goes to quarantine."""


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read an image's header; pixels are not decoded yet.

    Raises BadSample for what is no image, smaller than MIN_SIDE, or larger than `max_pixels`.
    """
    if not data:
        raise BadSample("the image is missing or empty")
    pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # max_pixels decides
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadSample(f"not an image ({type(error).__name__})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = pillow_limit
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample(f"the image has {width} x {height} pixels, more than {max_pixels}")
    if min(width, height) < MIN_SIDE:
        raise BadSample(f"the image has only {width} x {height} pixels")
    return image


def render(image: Image.Image, view: View, size: int, interpolation: str) -> npt.NDArray[np.uint8]:
    """Decode an opened image and return its view as (3, size, size) RGB.

    Raises BadSample where the pixels cannot be decoded, a file cut short included.
    """
    try:
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would turn white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        pixels = image.convert("RGB").resize((size, size), _RESAMPLING[interpolation], box=view.box)
    except (OSError, ValueError, SyntaxError, IndexError, EOFError) as error:
        raise BadSample(f"the image cannot be decoded ({error})") from None
    if view.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.ascontiguousarray(np.asarray(pixels, dtype=np.uint8).transpose(2, 0, 1))


def decode_caption(data: bytes) -> str:
    """Return the caption. Raises BadSample where it is missing, blank or not UTF-8."""
    if not data:
        raise BadSample("the caption is missing or empty")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadSample("the caption is not UTF-8") from None
    if not text.strip():
        raise BadSample("the caption is blank")
    return text
