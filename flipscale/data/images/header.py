"""The header of an image: what its bytes say, read before any library sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "jpeg2000"]
"""The kinds of image that can be read."""


@dataclass(frozen=True)
class ImageHeader:
    """What the bytes of an image say about it."""

    kind: Kind
    width: int  # pixels
    height: int  # pixels
    channels: int = 3  # of the file; only those of a JPEG are known
    scans: int = 1
    """Passes over the whole image, for the progressive JPEGs; a decoder spends its time on each."""
