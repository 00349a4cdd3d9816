"""The first picture of a GIF (GIF89a specification)."""

from __future__ import annotations

from flipscale.data.quarantine import BadSample

MAGIC = (b"GIF87a", b"GIF89a")

_EXTENSION, _PICTURE = 0x21, 0x2C
_SCREEN_END = 13  # offset behind the logical screen descriptor
_MOST_BLOCKS = 10_000  # before the first picture


def pixels_only(data: bytes) -> bytes:
    """Return a GIF without the comments and other extensions before its first picture.

    Raises:
        BadSample: If it has no picture.
    """
    flags = data[10] if len(data) >= _SCREEN_END else 0
    colours = 2 << (flags & 7) if flags & 0x80 else 0
    screen_end = _SCREEN_END + 3 * colours

    return data[:screen_end] + data[_first_picture(data, screen_end) :]


def _first_picture(data: bytes, position: int) -> int:
    """Return the offset of the first picture; the blocks before it begin at `position`."""
    in_extension = False  # a block of no bytes ends an extension
    for _ in range(_MOST_BLOCKS):
        if position >= len(data):
            break

        byte = data[position]
        if in_extension:
            position += 1 + byte
            in_extension = byte != 0
        elif byte == _PICTURE:
            return position
        elif byte == _EXTENSION:
            position += 2
            in_extension = True
        else:
            break

    raise BadSample("the GIF ends before its pixels, or has too many blocks before them")
