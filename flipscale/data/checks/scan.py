"""A full scan of shards: decode every sample, and say what is there and what training could not use."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from flipscale.data.checks.cleaning import write_clean
from flipscale.data.quarantine import BadRecord, BadSample
from flipscale.data.samples.augment import View
from flipscale.data.samples.decode import decode_caption, open_image, render
from flipscale.data.shards.storage import Storage
from flipscale.data.shards.tar import DAMAGE, NotATar, read_members, scan
from flipscale.errors import UserError

_ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".bz2", ".xz", ".zst")


@dataclass
class ShardReport:
    """What one shard holds."""

    shard: int
    path: str
    samples: int = 0
    bytes: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    damage: str | None = None  # why the tar ends early, or is none
    sides: Counter[int] = field(default_factory=Counter)  # shorter side of the good images, in pixels
    caption_words: Counter[int] = field(default_factory=Counter)
    oddities: Counter[str] = field(default_factory=Counter)  # members that are worth a look
    repeated_keys: list[str] = field(default_factory=list)  # that come again within this shard
    # 64-bit hashes, a row for each sample: of its key and of its image (0 where that is missing).
    hashes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    written: int = 0  # samples that the clean shard holds


@dataclass(frozen=True)
class Checking:
    """How shards are checked."""

    max_image_pixels: int
    clean: Path | None = None  # directory for clean shards
    storage: Storage = field(default_factory=Storage)


def check_shards(paths: Sequence[str], checking: Checking, workers: int) -> Iterator[ShardReport]:
    """Yield a report of each shard in order, decoding every sample as training would.

    Raises UserError for a shard that does not exist.
    """
    check = partial(_check_shard, checking)
    if workers <= 1 or len(paths) == 1:
        yield from map(check, range(len(paths)), paths)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(check, range(len(paths)), paths)


def duplicates(hashes: np.ndarray) -> np.ndarray:
    """Row numbers whose hash an earlier row has already; the hash 0 stands for nothing and is left out."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
    return np.sort(order[again])


def _check_shard(checking: Checking, number: int, path: str) -> ShardReport:
    report = ShardReport(number, path)
    try:
        with checking.storage.open(path) as file:
            report.bytes = file.seek(0, os.SEEK_END)
            _check_file(file, report, checking)
    except FileNotFoundError:
        raise UserError(f"the shard {path} does not exist; check the pattern that names it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return report


def _check_file(file: BinaryIO, report: ShardReport, checking: Checking) -> None:
    try:
        found = scan(file)
    except NotATar as error:
        report.damage = f"not an uncompressed tar file ({error})"
        return
    report.samples, report.damage = len(found.keys), found.damage
    report.oddities = _oddities(file)
    report.hashes = np.zeros((len(found.keys), 2), np.uint64)
    seen: set[str] = set()
    good: list[int] = []
    for ordinal, (key, row) in enumerate(zip(found.keys, found.members, strict=True)):
        report.hashes[ordinal, 0] = _hash(key.encode())
        if key in seen:
            report.repeated_keys.append(key)
        image = _content(file, row, "image")
        if image:
            report.hashes[ordinal, 1] = _hash(image)
        try:
            caption, side = _check_sample(image, _content(file, row, "text"), checking.max_image_pixels)
        except BadSample as error:
            report.bad.append(BadRecord(report.shard, ordinal, report.path, key, str(error)))
        else:
            report.sides[side] += 1
            report.caption_words[len(caption.split())] += 1
            if key not in seen:
                good.append(ordinal)
        seen.add(key)
    if checking.clean is not None:
        report.written = write_clean(file, found, good, checking.clean / f"{report.shard:06d}.tar")


def _check_sample(image: bytes, text: bytes, max_image_pixels: int) -> tuple[str, int]:
    caption = decode_caption(text)
    opened = open_image(image, max_image_pixels)
    width, height = opened.size
    render(opened, View((0, 0, width, height), False), 8, "bilinear")
    return caption, min(width, height)


def _content(file: BinaryIO, row: np.ndarray, name: str) -> bytes:
    file.seek(int(row[name]))
    return file.read(int(row[f"{name}_bytes"]))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _oddities(file: BinaryIO) -> Counter[str]:
    """Count members that a reader less careful than this one would trip over."""
    found: Counter[str] = Counter()
    try:
        for member in read_members(file):
            found.update(_odd(member))
    except DAMAGE:
        pass  # reported with the samples
    return found


def _odd(member: tarfile.TarInfo) -> Iterator[str]:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        yield "names that lead outside"
    if member.issym() or member.islnk():
        yield "links"
    elif not member.isreg() and not member.isdir():
        yield "special files"
    elif member.isreg() and member.size == 0:
        yield "empty members"
    if member.name.lower().endswith(_ARCHIVES):
        yield "archives inside"
    if member.pax_headers or len(member.name.encode(errors="replace")) > 100:
        yield "long names (pax or GNU)"
