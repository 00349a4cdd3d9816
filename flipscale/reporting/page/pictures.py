"""Images in a page: as data: addresses, hidden patches left out."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from flipscale.reporting.page.blocks import Picture

_SMALL = 128  # pixels a side; up to here lossless

Pixels = npt.NDArray[np.uint8]


def picture(pixels: Pixels, label: str) -> Picture:
    """Of (3, S, S) or (4, S, S) bytes; the fourth channel is opacity."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    side = pixels.shape[1]
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=side <= _SMALL, quality=82, exact=True)
    return Picture(f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", label, side)


def without_hidden(pixels: Pixels, visible: Sequence[int], grid: int) -> Pixels:
    """(3, S, S) to (4, S, S): transparent and black but for the patches `visible` of a grid x grid image."""
    opaque = np.zeros(grid * grid, dtype=np.uint8)
    opaque[list(visible)] = 255
    place = np.arange(pixels.shape[1]) * grid // pixels.shape[1]
    alpha = opaque[place[:, None] * grid + place]
    return np.concatenate([np.where(alpha > 0, pixels, 0), alpha[None]]).astype(np.uint8)
