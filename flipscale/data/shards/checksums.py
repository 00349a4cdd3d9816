"""checksums.bin: the CRC-32 of every sample's image and caption, by which content that changed is noticed."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from flipscale.data.quarantine import BadSample
from flipscale.data.shards.index_directory import CHECKSUMS
from flipscale.data.shards.remote import changed
from flipscale.data.shards.tar import check_size
from flipscale.errors import UserError
from flipscale.files import open_regular

CHECKSUM = np.dtype([("image", "<u4"), ("text", "<u4")])
"""One row: the CRC-32 of the contents; that of nothing if the sample has no such member, or a huge one."""

_HEADER = 64  # bytes: the fingerprint of the index that the checksums belong to


@dataclass(frozen=True)
class SampleChecksums:
    """The checksums of an index's samples. Copies in other processes open the file again.

    Attributes:
        directory: Directory of the index.
        fingerprint: The index's fingerprint.
        first_rows: Row of each shard's first sample, (shards,).
        samples: Samples of the index.
    """

    directory: Path
    fingerprint: str
    first_rows: np.ndarray
    samples: int

    def of(self, shards: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        """Return the checksums of image and caption of samples, uint32 (n, 2).

        Args:
            shards: int64 (n,), shard numbers in the index.
            ordinals: int64 (n,), sample numbers in the shards.
        """
        table = _opened(self.directory, self.fingerprint, self.samples)
        rows = table[self.first_rows[shards] + ordinals]
        return np.stack([rows["image"], rows["text"]], axis=1)


def open_checksums(directory: Path, fingerprint: str, samples: int) -> np.ndarray | None:
    """Return the checksums of an index, CHECKSUM (samples,); None if it has none.

    Args:
        directory: Directory of the index.
        fingerprint: The index's fingerprint.
        samples: Samples of the index.

    Raises:
        UserError: If the file belongs to another index or is damaged.
    """
    path = directory / CHECKSUMS
    try:
        with open_regular(path) as file:
            own = file.read(_HEADER) == fingerprint.encode()
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); remove it, or make the index again"
        ) from None

    if not own or size != _HEADER + samples * CHECKSUM.itemsize:
        raise UserError(f"{path} does not belong to the index next to it; remove it, or make the index again")
    return np.memmap(path, dtype=CHECKSUM, mode="r", offset=_HEADER, shape=(samples,))


@lru_cache(maxsize=4)
def _opened(directory: Path, fingerprint: str, samples: int) -> np.ndarray:
    table = open_checksums(directory, fingerprint, samples)
    if table is None:
        raise UserError(f"{directory / CHECKSUMS} was removed; make the index again")
    return table


def header(fingerprint: str) -> bytes:
    """Return what begins the file."""
    return fingerprint.encode().ljust(_HEADER)[:_HEADER]


def shard_checksums(path: str, rows: np.ndarray) -> np.ndarray:
    """Return the checksums of a local shard's samples, CHECKSUM (samples,).

    Args:
        path: The shard.
        rows: The samples' places, (samples,) of MEMBER.

    Raises:
        OSError: If the shard cannot be read.
        UserError: If it is shorter than its index says.
    """
    sums = np.zeros(len(rows), CHECKSUM)
    with open(path, "rb") as file:
        for number, row in enumerate(rows):
            for column, kind in (("image", "image"), ("text", "caption")):
                size = int(row[f"{column}_bytes"])
                try:
                    check_size(kind, size)
                except BadSample:
                    continue  # never read

                file.seek(int(row[column]))
                content = file.read(size)
                if len(content) < size:
                    raise changed(path)
                sums[number][column] = zlib.crc32(content)

    return sums
