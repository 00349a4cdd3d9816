"""The verdict on an image before it is decoded: its kind and size, and what decoding it would take."""

from __future__ import annotations

from flipscale.data.images.header import ImageHeader, Kind
from flipscale.data.images.jpeg import read_jpeg
from flipscale.data.images.kinds import kind_of
from flipscale.data.images.pillow import can_decode, open_with_pillow
from flipscale.data.images.png import read_png
from flipscale.data.images.webp import read_webp
from flipscale.data.quarantine import BadSample
from flipscale.errors import UserError

MIN_SIDE = 8  # pixels; a smaller image shows nothing

_READERS = {"jpeg": read_jpeg, "png": read_png, "webp": read_webp}
_MEMORY = {"webp": 2, "gif": 2, "tiff": 2, "avif": 2, "jpeg2000": 4}
"""Memory that decoding takes per pixel, compared with a JPEG or PNG (up to 15 bytes), rounded up."""
_MOST_PIXELS = 100_000_000
"""Pixels that may be decoded whatever the caller's limit: divided by _MEMORY, and in ten scans."""


def inspect(data: bytes, max_pixels: int) -> ImageHeader:
    """Return what the bytes of an image say, if it can be decoded with bounded memory and time.

    The verdict rests on the bytes only. Memory is about 15 bytes per pixel of `max_pixels` at most.

    Args:
        data: The image file.
        max_pixels: Largest width times height that is accepted.

    Raises:
        BadSample: If the image cannot be used; the message says why.
        UserError: If the installed Pillow was built without the decoder. Another sample in the place of this
            one would make the order depend on the machine.
    """
    if not data:
        raise BadSample("the image is missing or empty")

    kind = kind_of(data)
    if not can_decode(kind):
        raise UserError(
            f"an image has the format {kind}, for which the installed Pillow was built without a decoder; "
            "install the wheel with `pip install --force-reinstall pillow`"
        )

    reader = _READERS.get(kind)
    header = reader(data) if reader else _read_with_pillow(kind, data)
    _check_size(header, max_pixels)
    return header


def _read_with_pillow(kind: Kind, data: bytes) -> ImageHeader:
    try:
        return ImageHeader(kind, *open_with_pillow(kind, data).size)
    except BadSample:
        raise
    except Exception as error:
        raise unreadable(error) from None


def unreadable(error: Exception) -> BadSample:
    """Return the verdict on an image for which a decoder raised `error`, whatever the error is."""
    lines = str(error).splitlines()
    reason = "".join(filter(str.isprintable, lines[0]))[:200] if lines else type(error).__name__
    return BadSample(f"the image cannot be decoded ({reason})")


def _check_size(header: ImageHeader, max_pixels: int) -> None:
    pixels = header.width * header.height
    size = f"{header.width} x {header.height} pixels"

    if header.kind in _MEMORY:
        max_pixels = min(max_pixels, _MOST_PIXELS // _MEMORY[header.kind])
    if pixels > max_pixels:
        raise BadSample(f"the image has {size}, more than {max_pixels}")
    if min(header.width, header.height) < MIN_SIDE:
        raise BadSample(f"the image has only {size}")
    if pixels * header.scans > 10 * max(max_pixels, _MOST_PIXELS):
        raise BadSample(f"the image has {size} in {header.scans} scans, which take too long to decode")
