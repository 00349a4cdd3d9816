"""The chunks of a PNG (W3C PNG specification, third edition)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from flipscale.data.images.header import ImageHeader
from flipscale.data.quarantine import BadSample

MAGIC = b"\x89PNG\r\n\x1a\n"

_TYPE = re.compile(rb"[A-Za-z]{4}")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
_PALETTE = 3  # the colour type of an image with a palette
_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEADER_END = len(MAGIC) + 25  # offset behind the header chunk
_MOST_CHUNKS = 1000  # beyond one per 256 bytes


class _Chunk(NamedTuple):
    name: bytes
    start: int  # offset of its length
    end: int  # offset behind its checksum; beyond the data if it is cut short


def read_png(data: bytes) -> ImageHeader:
    """Return what a PNG says about itself.

    Raises:
        BadSample: If it is damaged before its pixels.
    """
    if data[8:16] != b"\0\0\0\rIHDR" or len(data) < _HEADER_END:
        raise BadSample("the PNG has no header")

    depth, colours, compression, filtering, interlace = data[24:29]
    if depth not in _DEPTHS.get(colours, ()) or compression or filtering or interlace > 1:
        raise BadSample("the PNG has a header of no known kind")

    palette = False
    for chunk in _chunks(data):
        palette = palette or chunk.name == b"PLTE"
        if chunk.name == b"IDAT":
            break
    else:
        raise BadSample("the PNG ends before its pixels")

    if colours == _PALETTE and not palette:
        raise BadSample("the PNG needs a palette and has none")

    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return ImageHeader("png", width, height)


def pixels_only(data: bytes) -> bytes:
    """Return a PNG without its metadata, which libraries would read and may fail on.

    Header, palette and pixels stay. Pixels end where another chunk follows them.
    """
    parts = [data[:_HEADER_END]]
    for chunk in _chunks(data):
        if chunk.name in (b"PLTE", b"IDAT"):
            parts.append(data[chunk.start : chunk.end])
            if chunk.end > len(data):
                return b"".join(parts)

    return b"".join([*parts, _END])


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks behind the header, up to the first one behind the pixels or to the end of the data."""
    position = _HEADER_END
    pixels = False
    for _ in range(_MOST_CHUNKS + len(data) // 256):
        name = data[position + 4 : position + 8]
        if pixels and name != b"IDAT":
            return
        if _TYPE.fullmatch(name) is None:
            return

        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield _Chunk(name, position, end)
        if name == b"IEND":
            return
        pixels = name == b"IDAT"
        position = end

    raise BadSample("the PNG has too many chunks for its size")
