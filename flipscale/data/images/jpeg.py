"""The segments of a JPEG, read as libjpeg reads them (ITU T.81, annex B; libjpeg-turbo's jdmarker.c)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from flipscale.data.images.header import ImageHeader
from flipscale.data.quarantine import BadSample

MAGIC = b"\xff\xd8\xff"

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_IN_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")

_SOF = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # Huffman and arithmetic coding, sequential and progressive
_LOSSLESS = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xDE}  # and hierarchical
_PROGRESSIVE = {0xC2, 0xCA}
_SOS, _EOI, _DHT, _DAC, _DQT, _DNL, _DRI, _COM = 0xDA, 0xD9, 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF
_WITH_LENGTH = {*_SOF, *_LOSSLESS, _SOS, _DHT, _DAC, _DQT, _DNL, _DRI, _COM, *range(_APP0, _APP15 + 1)}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}

_MOST_SEGMENTS = 10_000  # before the pixels; ordinary files have about ten
MOST_SCANS = 100
"""Scans of a progressive JPEG that are read; encoders write about ten."""


class _Segment(NamedTuple):
    code: int  # second byte of the marker
    start: int  # offset of the marker
    end: int  # offset behind the segment


def read_jpeg(data: bytes) -> ImageHeader:
    """Return what a JPEG says about itself.

    Lossless JPEGs are refused here: libjpeg-turbo cannot decode them at a smaller size, and writes the whole
    picture into the buffer of the small one.

    Raises:
        BadSample: If it is damaged, or of a kind that is not read.
    """
    frame: tuple[int, ImageHeader] | None = None
    for segment in _segments(data):
        if segment.code == _SOS:
            if frame is None:
                break
            return _with_scans(data, segment, *frame)
        if segment.code in _LOSSLESS:
            raise BadSample("the image is a lossless or hierarchical JPEG, which is not supported")
        if segment.code in _SOF:
            frame = segment.code, _frame(data[segment.start + 4 : segment.end])

    raise BadSample("the JPEG ends before its pixels")


def pixels_only(data: bytes) -> bytes:
    """Return a JPEG without its metadata, which libraries would read and may fail on.

    The segments that determine the colours stay: those that libjpeg takes for JFIF's and Adobe's.
    """
    parts = [data[:2]]
    for segment in _segments(data):
        if segment.code == _SOS:
            parts.append(data[segment.start :])
            break
        if _determines_pixels(data, segment):
            parts.append(data[segment.start : segment.end])

    return b"".join(parts)


def _determines_pixels(data: bytes, segment: _Segment) -> bool:
    content = data[segment.start + 4 : segment.end]
    if segment.code == _APP0:
        return len(content) >= 14 and content.startswith(b"JFIF\0")
    if segment.code == _APP14:
        return len(content) >= 12 and content.startswith(b"Adobe")
    return segment.code in _WITH_LENGTH and segment.code != _COM and not _APP0 <= segment.code <= _APP15


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments up to the first scan, whose entropy-coded data is left out.

    As in libjpeg, bytes between two segments are skipped, and a marker may be padded with 0xFF.
    """
    position = 2
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None:
            return

        code = data[marker.end() - 1]
        position = marker.end()
        if code in _WITH_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
        elif code not in _WITHOUT_LENGTH:
            return
        if position > len(data):
            return

        yield _Segment(code, marker.start(), position)
        if code == _SOS:
            return

    raise BadSample(f"the JPEG has more than {_MOST_SEGMENTS} segments")


def _frame(content: bytes) -> ImageHeader:
    """Return what the frame header says: precision, height, width, and three bytes per component."""
    channels = content[5] if len(content) > 5 else 0
    if len(content) != 6 + 3 * channels:
        raise BadSample("the JPEG has a damaged frame header")
    if content[0] != 8:
        raise BadSample(f"the JPEG has {content[0]} bits per channel, and only 8 are supported")
    if channels not in (1, 3, 4):
        raise BadSample(f"the JPEG has {channels} channels, and only 1, 3 and 4 are supported")

    height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    return ImageHeader("jpeg", width, height, channels)


def _with_scans(data: bytes, first: _Segment, frame: int, header: ImageHeader) -> ImageHeader:
    """Return the header with the number of scans, given the first one."""
    in_scan = data[first.start + 4] if first.end > first.start + 4 else 0
    if frame not in _PROGRESSIVE and in_scan == header.channels:
        return header  # libjpeg reads only one scan

    # Counting bytes takes far less time than walking, and never gives too few.
    scans = 1 + data.count(b"\xff\xda", first.end)
    if scans > MOST_SCANS:
        scans = _walked_scans(data, first.end)
    if scans > MOST_SCANS:
        raise BadSample(f"the JPEG has more than {MOST_SCANS} scans")

    return ImageHeader(header.kind, header.width, header.height, header.channels, scans)


def _walked_scans(data: bytes, position: int) -> int:
    """Count the scans up to the end of the image, or until there are too many."""
    scans = 1
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER_IN_SCAN.search(data, position)
        if marker is None or data[marker.end() - 1] == _EOI:
            return scans

        position = marker.end()
        code = data[position - 1]
        scans += code == _SOS
        if scans > MOST_SCANS:
            return scans
        if code in _WITH_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))

    raise BadSample(f"the JPEG has more than {_MOST_SEGMENTS} segments")
