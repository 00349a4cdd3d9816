"""A full scan of shards: decodes every sample, and reports contents and samples that training cannot use."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from flipscale.addresses import without_secrets
from flipscale.child_process import FORK, die_with_parent
from flipscale.config import IMAGE_EXTENSIONS
from flipscale.data.checks.caption_members import caption_members, member_content
from flipscale.data.checks.cleaning import write_clean
from flipscale.data.checks.images import shorter_sides
from flipscale.data.quarantine import BadRecord, BadSample
from flipscale.data.samples.captions import CaptionFields
from flipscale.data.shards.storage import Storage
from flipscale.data.shards.tar import NotATar, Strays, scan
from flipscale.data.shards.tar_members import Member, TarDamage, read_members
from flipscale.errors import UserError, words_of

_ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".bz2", ".xz", ".zst")


@dataclass
class ShardReport:
    """The contents of one shard."""

    shard: int
    path: str
    samples: int = 0
    bytes: int = 0
    bad: list[BadRecord] = field(default_factory=list[BadRecord])
    damage: str | None = None  # why the tar ends early, or is not a tar
    sides: Counter[int] = field(default_factory=Counter[int])  # shorter side of the good images, in pixels
    caption_words: Counter[int] = field(default_factory=Counter[int])  # words per good caption
    captions: Counter[str] = field(default_factory=Counter[str])  # samples with a caption, by its source
    oddities: Counter[str] = field(default_factory=Counter[str])  # members that are worth a look
    strays: Strays = field(default_factory=Strays)
    repeated_keys: list[str] = field(default_factory=list[str])  # every repeat of a key in this shard
    # uint64 (samples, 2): hashes of each sample's key and image (0 if the image is missing).
    hashes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    written: int = 0  # samples in the clean shard


@dataclass(frozen=True)
class Checking:
    """The settings of a check."""

    max_image_pixels: int  # larger images count as bad
    clean: Path | None = None  # directory of clean shards; None writes none
    storage: Storage = field(default_factory=Storage)
    captions: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})  # source -> weight
    images: tuple[str, ...] = IMAGE_EXTENSIONS  # the extensions of images


def check_shards(paths: Sequence[str], checking: Checking, workers: int) -> Iterator[ShardReport]:
    """Yield a report of each shard in order, decoding every sample as training does.

    Args:
        paths: Shards.
        checking: Settings of the check.
        workers: Processes that share the shards.

    Raises:
        UserError: If a shard does not exist or cannot be read.
    """
    check = partial(_check_shard, checking)
    if workers <= 1 or len(paths) == 1:
        yield from map(check, range(len(paths)), paths)
        return

    with ProcessPoolExecutor(workers, FORK, die_with_parent, (os.getpid(),)) as pool:
        yield from pool.map(check, range(len(paths)), paths)


def duplicates(hashes: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows whose hash occurs in an earlier row; 0 (missing) is left out."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
    return np.sort(order[again])


def _check_shard(checking: Checking, number: int, path: str) -> ShardReport:
    report = ShardReport(number, without_secrets(path))
    try:
        with checking.storage.open(path) as file:
            report.bytes = file.seek(0, os.SEEK_END)
            with shorter_sides(checking.max_image_pixels) as shorter_side:
                _check_file(file, report, checking, shorter_side)
    except FileNotFoundError:
        raise UserError(f"the shard {path} does not exist; check the pattern that names it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({words_of(error)}); restore it, or leave it out") from None

    return report


def _check_file(
    file: BinaryIO, report: ShardReport, checking: Checking, shorter_side: Callable[[bytes], int]
) -> None:
    report.captions.update(dict.fromkeys(checking.captions, 0))
    try:
        scanned = scan(file, checking.images)
    except NotATar as error:
        report.damage = f"not an uncompressed tar file ({error})"
        return

    report.samples = len(scanned.keys)
    report.damage = scanned.damage
    report.strays = scanned.strays
    report.oddities = _oddities(file)
    report.hashes = np.zeros((len(scanned.keys), 2), np.uint64)

    fields = CaptionFields(checking.captions)
    seen: set[str] = set()
    good: dict[str, int] = {}  # the first usable sample of each key
    for ordinal, (key, row) in enumerate(zip(scanned.keys, scanned.members, strict=True)):
        report.hashes[ordinal, 0] = _hash(key.encode())
        if key in seen:
            report.repeated_keys.append(key)
        seen.add(key)

        members = caption_members(file, scanned.members, ordinal, fields)
        report.captions.update(name for name, texts in fields.all(members).items() if texts)
        try:
            image = member_content(file, row, "image")
            if image:
                report.hashes[ordinal, 1] = _hash(image)
            caption = fields.draw(members, 0)
            side = shorter_side(image)
        except BadSample as error:
            report.bad.append(BadRecord(report.shard, ordinal, report.path, key, str(error)))
            continue

        report.sides[side] += 1
        report.caption_words[len(caption.split())] += 1
        good.setdefault(key, ordinal)

    if checking.clean is not None:
        clean = checking.clean / f"{report.shard:06d}.tar"
        report.written = write_clean(file, scanned, list(good.values()), clean)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _oddities(file: BinaryIO) -> Counter[str]:
    """Count the members that a less careful reader may fail on."""
    oddities: Counter[str] = Counter()
    try:
        for member in read_members(file):
            oddities.update(_odd(member))
    except TarDamage:
        pass  # reported with the samples

    return oddities


def _odd(member: Member) -> Iterator[str]:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        yield "names that lead outside"
    if member.is_link:
        yield "links"
    elif not member.is_file and not member.is_directory:
        yield "special files"
    elif member.is_file and member.size == 0:
        yield "empty members"
    if member.name.lower().endswith(_ARCHIVES):
        yield "archives inside"
    if member.extended or len(member.name.encode(errors="replace")) > 100:
        yield "long names (pax or GNU)"
