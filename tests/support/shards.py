"""Real shards for tests: small images in every format, captions, tars as img2dataset writes them, damage."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flipscale.data.text.tokenizer import WordPieceTokenizer
from flipscale.data.text.vocabulary import SPECIAL_TOKENS

WORDS = ["a", "red", "green", "blue", "cat", "dog", "hat", *"0123456789", *(f"##{n}" for n in range(10))]
Member = tuple[str, bytes]


def tiny_tokenizer(context_length: int = 8) -> WordPieceTokenizer:
    """Return a tokenizer of a few words, which spells numbers digit by digit."""
    return WordPieceTokenizer([*SPECIAL_TOKENS, *WORDS], context_length)


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Return a smooth random RGB image, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """Return the bytes of an image file; `kind` is JPEG, PNG, WEBP or GIF."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def caption(number: int) -> str:
    return f"a red cat {number}"


def good(number: int, key: str | None = None) -> list[Member]:
    """Return the members of a usable sample."""
    key = f"{number:09d}" if key is None else key
    return [(f"{key}.jpg", encoded(picture(number))), (f"{key}.txt", caption(number).encode())]


def vast_png(width: int, height: int) -> bytes:
    """Return a valid PNG of one colour, which is far smaller than its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # one bit per pixel, grey
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


# Every kind of bad sample: (image, caption, reason reported for it); None stands for a missing member.
BAD: dict[str, tuple[bytes | None, bytes | None, str]] = {
    "half a jpeg": (_half(encoded(picture(1, 160, 120))), b"a cat", "the image cannot be decoded"),
    "half a png": (_half(encoded(picture(1, 160, 120), "PNG")), b"a cat", "the image cannot be decoded"),
    "half a webp": (_half(encoded(picture(1, 160, 120), "WEBP")), b"a cat", "the image cannot be decoded"),
    "no image": (b"<html>404 not found</html>", b"a cat", "not an image"),
    "a heic": (b"\0\0\0\x18ftypheic" + bytes(99), b"a cat", "not an image that can be read, but HEIC"),
    "empty image": (b"", b"a cat", "the image is missing or empty"),
    "missing image": (None, b"a cat", "the image is missing or empty"),
    "one pixel": (encoded(picture(1, 1, 1)), b"a cat", "the image has only 1 x 1 pixels"),
    "a line": (encoded(picture(1, 400, 7)), b"a cat", "the image has only 400 x 7 pixels"),
    "200 megapixels": (
        vast_png(20_000, 10_000),
        b"a cat",
        "the image has 20000 x 10000 pixels, more than 100000000",
    ),
    "missing caption": (encoded(picture(1)), None, "the caption is missing or empty"),
    "empty caption": (encoded(picture(1)), b"", "the caption is missing or empty"),
    "blank caption": (encoded(picture(1)), b" \n\t", "the caption is blank"),
    "not utf-8": (encoded(picture(1)), b"caf\xe9", "the caption is not UTF-8"),
}


def bad(kind: str, key: str) -> list[Member]:
    """Return the members of a bad sample; `kind` is a key of BAD."""
    image, text, _ = BAD[kind]
    members = [] if image is None else [(f"{key}.jpg", image)]
    return members + ([] if text is None else [(f"{key}.txt", text)])


def write_tar(path: Path, members: Iterable[Member], layout: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(
    root: Path, counts: Sequence[int], bad_at: Mapping[tuple[int, int], str] | None = None
) -> str:
    """Write one tar for each of `counts` and return their pattern; `bad_at` damages (shard, ordinal)."""
    bad_at = bad_at or {}
    for shard, count in enumerate(counts):
        members: list[Member] = []
        for ordinal in range(count):
            kind, number = bad_at.get((shard, ordinal)), shard * 10_000 + ordinal
            members += good(number) if kind is None else bad(kind, f"{number:09d}")
        write_tar(root / f"{shard:05d}.tar", members)
    return str(root / f"{{00000..{len(counts) - 1:05d}}}.tar")
