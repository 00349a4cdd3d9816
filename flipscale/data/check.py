"""A full scan of shards: decode every sample, and say what is there and what training could not use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flipscale.data.augment import View
from flipscale.data.decode import BadSample, decode_caption, open_image, render
from flipscale.data.index import Index, sample_key
from flipscale.data.quarantine import BadRecord


@dataclass
class ShardReport:
    """What one shard holds."""

    shard: int
    samples: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    sides: Counter[int] = field(default_factory=Counter)  # shorter side of the good images, in pixels
    caption_words: Counter[int] = field(default_factory=Counter)


def check_index(index: Index, max_image_pixels: int, workers: int) -> Iterator[ShardReport]:
    """Yield a report of each shard in order, decoding every sample as training would."""
    check = partial(_check_shard, index, max_image_pixels)
    numbers = range(len(index.shards))
    if workers <= 1:
        yield from map(check, numbers)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(check, numbers)


def _check_shard(index: Index, max_image_pixels: int, number: int) -> ShardReport:
    shard = index.shards[number]
    report = ShardReport(number, shard.samples)
    first = int(index.first_rows[number])
    with open(Path(shard.path), "rb") as file:
        for ordinal, member in enumerate(index.members[first : first + shard.samples]):
            try:
                caption, side = _check_sample(file, member, max_image_pixels)
            except BadSample as error:
                key = sample_key(shard.path, ordinal)
                report.bad.append(BadRecord(number, ordinal, shard.path, key, str(error)))
            else:
                report.sides[side] += 1
                report.caption_words[len(caption.split())] += 1
    return report


def _check_sample(file: BinaryIO, member: np.void, max_image_pixels: int) -> tuple[str, int]:
    def member_bytes(name: str) -> bytes:
        file.seek(int(member[name]))
        return file.read(int(member[f"{name}_bytes"]))

    caption = decode_caption(member_bytes("text"))
    image = open_image(member_bytes("image"), max_image_pixels)
    width, height = image.size
    render(image, View((0, 0, width, height), False), 8, "bilinear")
    return caption, min(width, height)
