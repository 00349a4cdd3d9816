"""A writer of lossless JPEGs (ITU T.81, annex H), which no installed library writes."""

from __future__ import annotations

import struct

import numpy as np


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """Return (height, width, channels) pixels as a lossless JPEG: differences to the left, in one scan."""
    height, width, channels = pixels.shape
    ids = range(1, channels + 1)
    frame = struct.pack(">BHHB", 8, height, width, channels) + b"".join(bytes([n, 0x11, 0]) for n in ids)
    # Seventeen codes of five bits: code n says that the difference has n bits.
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    scan = bytes([channels, *(byte for n in ids for byte in (n, 0)), 1, 0, 0])

    parts = [(0xC3, frame), (0xC4, table), (0xDA, scan)]
    head = b"".join(bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body for code, body in parts)
    return b"\xff\xd8" + head + _coded(pixels.astype(int)) + b"\xff\xd9"


def _coded(pixels: np.ndarray) -> bytes:
    predicted = np.empty_like(pixels)
    predicted[:, 1:] = pixels[:, :-1]
    predicted[1:, 0] = pixels[:-1, 0]
    predicted[0, 0] = 128

    bits: list[str] = []
    for difference in (pixels - predicted).ravel().tolist():
        size = abs(difference).bit_length()
        bits.append(f"{size:05b}")
        if size:
            bits.append(f"{difference + (difference < 0) * ((1 << size) - 1):0{size}b}")

    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    return data.replace(b"\xff", b"\xff\0")
