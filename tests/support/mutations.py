"""Damaged, hostile and odd images: seeded changes of small files of every kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, features
from support.lossless_jpeg import lossless_jpeg
from support.shards import picture

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@cache
def image_seeds() -> dict[str, bytes]:
    """Return a small file of every kind and coding."""
    image = picture(1, 67, 50)
    transparent = Image.merge("RGBA", (*image.split(), picture(4, 67, 50).convert("L")))
    grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x011A] = 72.5  # dots per inch

    seeds = {
        "jpeg": _saved(image, "JPEG"),
        "jpeg exif": _saved(image, "JPEG", exif=exif, dpi=(72, 72), comment=b"a comment"),
        "jpeg whole chroma": _saved(image, "JPEG", subsampling=0),
        "jpeg progressive": _saved(image, "JPEG", progressive=True),
        "jpeg grey": _saved(grey, "JPEG"),
        "jpeg grey progressive": _saved(grey, "JPEG", progressive=True),
        "jpeg cmyk": _saved(image.convert("CMYK"), "JPEG"),
        "jpeg restarts": _saved(image, "JPEG", restart_marker_rows=1),
        "jpeg lossless": lossless_jpeg(np.asarray(picture(1, 33, 25))),
        "jpeg lossless grey": lossless_jpeg(np.asarray(picture(1, 33, 25).convert("L"))[..., None]),
        "mpo": _saved(image, "MPO", save_all=True, append_images=[picture(2, 67, 50)]),
        "png": _saved(image, "PNG"),
        "png palette": _saved(image.convert("P"), "PNG", transparency=3),
        "png one bit": _saved(image.convert("1"), "PNG"),
        "png deep grey": _saved(deep, "PNG"),
        "png transparent": _saved(transparent, "PNG", dpi=(72, 72)),
        "png grey and alpha": _saved(transparent.convert("LA"), "PNG"),
        "apng": _saved(image, "PNG", save_all=True, append_images=[picture(2, 67, 50)]),
        "webp": _saved(image, "WEBP"),
        "webp lossless": _saved(image, "WEBP", lossless=True),
        "webp transparent": _saved(transparent, "WEBP", exif=exif),
        "webp animated": _saved(image, "WEBP", save_all=True, append_images=[picture(2, 67, 50)]),
        "gif": _saved(image, "GIF", comment=b"a comment"),
        "gif animated": _saved(image, "GIF", save_all=True, append_images=[picture(2, 67, 50)]),
        "bmp": _saved(image, "BMP"),
        "bmp palette": _saved(image.convert("P"), "BMP"),
        "tiff": _saved(image, "TIFF"),
        "tiff lzw": _saved(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": _saved(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": _saved(image, "TIFF", compression="jpeg"),
        "tiff float": _saved(grey.convert("F"), "TIFF"),
        "jpeg2000": _saved(image, "JPEG2000"),
    }
    if features.check("avif"):
        seeds["avif"] = _saved(image, "AVIF")
    return seeds


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mutated(seed: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Return a changed copy of a file; `other` is one to take parts of."""
    data = bytearray(seed)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        change = _CHANGES[random.integers(len(_CHANGES))]
        change(data, other, random)
    if data.startswith(PNG_MAGIC) and random.random() < 0.7:
        return with_checksums(bytes(data))
    return bytes(data)


def with_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks have right checksums, so that changes reach the decoder."""
    result = bytearray(data)
    position = len(PNG_MAGIC)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        result[end : end + 4] = struct.pack(">I", zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(result)


def _place(data: bytearray, random: np.random.Generator) -> int:
    """Return a place in the data, in half of the cases near its beginning."""
    return int(random.integers(max(1, min(len(data), 700) if random.random() < 0.5 else len(data))))


def _set_bytes(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 4)):
        if data:
            data[_place(data, random)] = random.choice(
                [0, 1, 3, 127, 128, 254, 255, int(random.integers(256))]
            )


def _flip_bit(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    if data:
        data[_place(data, random)] ^= 1 << int(random.integers(8))


def _cut(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    kept = len(data) - random.integers(12) if random.random() < 0.5 else random.integers(1, len(data) + 1)
    del data[max(0, int(kept)) :]


def _remove(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    start = _place(data, random)
    del data[start : start + int(random.integers(1, 64))]


def _insert(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    start = _place(data, random)
    data[start:start] = random.bytes(int(random.integers(1, 64)))


def _repeat(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    start = _place(data, random)
    data[start:start] = data[start : start + int(random.integers(1, 256))]


def _take(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    """Overwrite or insert a part of another file."""
    start, size = _place(data, random), int(random.integers(1, 512))
    begin = int(random.integers(len(other)))
    data[start : start + size * (random.random() < 0.5)] = other[begin : begin + size]


def _append(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    data += other if random.random() < 0.5 else random.bytes(int(random.integers(1, 64)))


def _set_number(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    """Write a number of two or four bytes that sizes and lengths rarely have."""
    number = int(random.choice([0, 1, 2, 7, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
    size = 2 if number <= 0xFFFF and random.random() < 0.7 else 4
    start = _place(data, random)
    data[start : start + size] = number.to_bytes(size, "big" if random.random() < 0.6 else "little")


def _change_marker(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    """Give a JPEG's segment another meaning, such as that of a lossless frame."""
    markers = [n + 1 for n in range(min(len(data) - 1, 2000)) if data[n] == 0xFF and data[n + 1] >= 0xC0]
    if markers:
        data[random.choice(markers)] = int(random.integers(0xC0, 0x100))


_Change = Callable[[bytearray, bytes, np.random.Generator], None]
_CHANGES: tuple[_Change, ...] = (
    _set_bytes,
    _set_bytes,
    _flip_bit,
    _cut,
    _remove,
    _insert,
    _repeat,
    _take,
    _append,
    _set_number,
    _change_marker,
)
