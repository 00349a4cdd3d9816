"""The captions of the samples in a shard file, as training finds them, without an index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import BinaryIO

import numpy as np

from flipscale.data.samples.captions import CaptionFields
from flipscale.data.shards.members import SampleMembers, members_of_sample
from flipscale.data.shards.tar import MEMBER, check_size, read_samples
from flipscale.data.shards.tar_members import TarDamage


def caption_members(file: BinaryIO, rows: np.ndarray, ordinal: int, fields: CaptionFields) -> SampleMembers:
    """Return the members of a sample that its captions are read from.

    Args:
        file: The shard.
        rows: MEMBER (samples,), those of the shard.
        ordinal: Number of the sample.
        fields: The fields that hold captions.
    """
    if fields.indexed:
        return SampleMembers({"txt": partial(member_content, file, rows[ordinal], "text")})

    def read(offset: int, size: int) -> bytes:
        file.seek(offset)
        return file.read(size)

    before = rows[ordinal - 1] if ordinal else None
    behind = rows[ordinal + 1] if ordinal + 1 < len(rows) else None
    return members_of_sample(read, rows[ordinal], before, behind, file.seek(0, os.SEEK_END))


def member_content(file: BinaryIO, row: np.ndarray, name: str) -> bytes:
    """Return the content of a known member of a sample: its `image`, `text` or `cls`.

    Raises:
        BadSample: If the member is too large.
    """
    size = int(row[f"{name}_bytes"])
    check_size({"text": "caption"}.get(name, name), size)
    file.seek(int(row[name]))
    return file.read(size)


def count_captions(
    file: BinaryIO, captions: Mapping[str, float], images: Sequence[str], most: int
) -> tuple[int, dict[str, int]]:
    """Count the first samples of a shard that have a caption, by its source.

    Args:
        file: The shard.
        captions: Weight of each source, as in `data.captions`.
        images: The extensions of images.
        most: Most samples to look at.

    Returns:
        The number of samples, and of those with a caption in each source.
    """
    samples: list[tuple[int, ...]] = []
    with suppress(TarDamage):  # the samples before it are whole
        # One more than are counted: the members of a sample end where the next one begins.
        samples.extend(sample.row for sample in islice(read_samples(file, images), most + 1))

    rows = np.array(samples, dtype=MEMBER)
    fields = CaptionFields(captions)
    counts = dict.fromkeys(captions, 0)
    looked_at = min(len(rows), most)
    for ordinal in range(looked_at):
        for name, texts in fields.all(caption_members(file, rows, ordinal, fields)).items():
            counts[name] += bool(texts)
    return looked_at, counts
