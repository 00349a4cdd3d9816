"""The size of a WebP (Google's WebP container specification)."""

from __future__ import annotations

from flipscale.data.images.header import ImageHeader
from flipscale.data.quarantine import BadSample

_KEY_FRAME = b"\x9d\x01\x2a"


def is_webp(data: bytes) -> bool:
    """Return whether the data begins as a WebP does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> ImageHeader:
    """Return what a WebP says about itself; the size of an animation is that of its canvas.

    Raises:
        BadSample: If it is damaged before its pixels.
    """
    chunk = data[12:16]
    if len(data) >= 30 and chunk == b"VP8 " and data[23:26] == _KEY_FRAME:
        return ImageHeader("webp", _number(data, 26, 2) & 0x3FFF, _number(data, 28, 2) & 0x3FFF)

    if len(data) >= 25 and chunk == b"VP8L" and data[20] == 0x2F:
        bits = _number(data, 21, 4)
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)

    if len(data) >= 30 and chunk == b"VP8X":
        return ImageHeader("webp", _number(data, 24, 3) + 1, _number(data, 27, 3) + 1)

    raise BadSample("the WebP ends before its pixels")


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")
