"""Images of a page: encoded into it, with the patches removed that a mask hides."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from flipscale.reporting.page.blocks import Picture

_MOST_LOSSLESS = 128  # largest side in pixels that is stored without loss

Pixels = npt.NDArray[np.uint8]
"""uint8 array of shape (3, S, S), or (4, S, S) with opacity as the fourth channel."""


def encode_picture(pixels: Pixels, label: str) -> Picture:
    """Encode an image as WebP in a `data:` URL.

    Args:
        pixels: The image; a fourth channel is its opacity.
        label: The caption, which is also the alternative text.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    side = pixels.shape[1]

    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=side <= _MOST_LOSSLESS, quality=82, exact=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()

    return Picture(f"data:image/webp;base64,{encoded}", label, side)


def hide_patches(pixels: Pixels, visible: Sequence[int], grid: int) -> Pixels:
    """Make the hidden patches of an image transparent and black.

    Args:
        pixels: uint8 image of shape (3, S, S).
        visible: Row-major numbers of the patches to keep.
        grid: Number of patches along each side.

    Returns:
        uint8 image of shape (4, S, S); the fourth channel is 255 in visible patches and 0 elsewhere.
    """
    opaque = np.zeros(grid * grid, dtype=np.uint8)
    opaque[list(visible)] = 255

    # Number of the patch row (or column) to which each pixel row (or column) belongs.
    side = pixels.shape[1]
    patch = np.array([pixel * grid // side for pixel in range(side)])
    alpha = opaque[patch[:, None] * grid + patch]

    return np.concatenate([np.where(alpha > 0, pixels, 0), alpha[None]]).astype(np.uint8)
