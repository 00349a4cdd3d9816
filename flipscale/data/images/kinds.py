"""The kind of a file, by its first bytes."""

from __future__ import annotations

import re

from flipscale.data.images import gif, jpeg, png
from flipscale.data.images.header import Kind
from flipscale.data.images.webp import is_webp
from flipscale.data.quarantine import BadSample

_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_TIFF = (b"II*\0", b"MM\0*")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_MOST_BRANDS = 32

_OTHERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\xef?\xbb?\xbf?\s*(<\?xml[^>]*>\s*)?(<!--.{0,500}?-->\s*)?<svg", re.I | re.S), "SVG"),
    (re.compile(rb"\xef?\xbb?\xbf?\s*<(!doctype )?html", re.I), "HTML"),
    (re.compile(rb"\xef?\xbb?\xbf?\s*[{\[]"), "JSON"),
)
"""Files that are often found in the place of an image, with the words for them."""


def kind_of(data: bytes) -> Kind:
    """Return the kind of an image.

    Args:
        data: The file, or its first bytes.

    Raises:
        BadSample: If it is none of the kinds that can be read.
    """
    if data.startswith(jpeg.MAGIC):
        return "jpeg"
    if data.startswith(png.MAGIC):
        return "png"
    if is_webp(data):
        return "webp"

    return _rare_kind(data)


def _rare_kind(data: bytes) -> Kind:
    brands = _brands(data)
    if brands & _AVIF_BRANDS:
        return "avif"
    if data.startswith(gif.MAGIC):
        return "gif"
    if data.startswith(_TIFF):
        return "tiff"
    if data.startswith(_JPEG2000):
        return "jpeg2000"
    if data.startswith(b"BM") and data[6:10] == bytes(4):  # two letters are not enough
        return "bmp"

    others = (name for magic, name in _OTHERS if magic.match(data))
    found = "HEIC" if brands & _HEIF_BRANDS else next(others, None)
    raise BadSample("not an image" if found is None else f"not an image that can be read, but {found}")


def _brands(data: bytes) -> set[bytes]:
    """Return the brands that an ISO media file names: its own, and those that it is compatible with."""
    if data[4:8] != b"ftyp":
        return set()

    end = min(int.from_bytes(data[:4], "big"), 16 + 4 * _MOST_BRANDS)
    compatible = (data[at : at + 4] for at in range(16, end, 4))
    return {data[8:12], *compatible}
