"""What a file of weights is by its first bytes, whatever its name says."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

_READ = 512  # bytes
_WEB_PAGE = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_LONGEST_HEADER = 100_000_000  # bytes; safetensors itself refuses longer ones


class FileKind(Enum):
    """The kinds of files that are given as weights; the value describes them in messages."""

    SAFETENSORS = "a safetensors file"
    ARCHIVE = "a zip archive, as torch.save writes it"
    PICKLE = "a pickle, as torch.save wrote it before torch 1.6"
    POINTER = "a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`"
    WEB_PAGE = "a web page and not a file of weights; download the file itself"
    EMPTY = "empty; export or download it again"
    OTHER = "neither a safetensors file nor one of torch.save; give a file of weights"

    @property
    def torch_reads(self) -> bool:
        """Whether torch.load is the one to read it."""
        return self in (FileKind.ARCHIVE, FileKind.PICKLE)


def file_kind(path: Path) -> FileKind:
    """Return the kind of a file by its first bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        begin = file.read(_READ)

    if not begin:
        return FileKind.EMPTY
    if begin.startswith(b"version https://git-lfs.github.com/"):
        return FileKind.POINTER
    if _WEB_PAGE.match(begin):
        return FileKind.WEB_PAGE
    if begin.startswith(b"PK\x03\x04"):
        return FileKind.ARCHIVE
    # Eight bytes of length, then a JSON object.
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= _LONGEST_HEADER:
        return FileKind.SAFETENSORS
    if begin[0] == 0x80 and begin[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind.PICKLE
    return FileKind.OTHER
