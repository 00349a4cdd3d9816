"""A rendered and captioned data set in webdataset tars, as img2dataset writes them.

    OUT/train/00000.tar ...          1 to 3 objects and a caption each
    OUT/val/00000.tar ...            the same, for retrieval
    OUT/test/00000.tar ...           one object of a seen colour-shape pair, with its class
    OUT/test_heldout/00000.tar ...   one object of a pair that no other split holds, with its class
    OUT/classnames.txt  OUT/templates.txt  OUT/classes.json  OUT/README.md

A sample is a pure function of (seed, split, sample number). Neither the number of worker processes nor the
counts of other splits change a byte of it.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from flipscale.child_process import die_with_parent
from flipscale.data.synthetic.descriptions import SyntheticSplit, write_descriptions
from flipscale.data.synthetic.samples import sample_members
from flipscale.data.synthetic.vocabulary import HELD_OUT, SEEN
from flipscale.errors import UserError, words_of
from flipscale.staging import staged_directory

MIN_IMAGE_SIZE = 16  # pixels; in smaller images, shapes cannot be recognized
MAX_SHARD_SIZE = 10_000  # img2dataset's keys have five digits for the shard and four for the sample in it


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """The contents of a synthetic data set, whichever process writes them."""

    image_size: int = 64
    """Height and width, in pixels."""
    train: int = 20_000
    """Samples for training, of 1 to 3 objects."""
    val: int = 1_000
    """Samples for retrieval, of 1 to 3 objects."""
    test: int = 2_000
    """Samples for zero-shot classification; `test_heldout` gets as many images per class."""
    shard_size: int = 1_000
    """Samples per shard."""
    seed: int = 0
    """Seed of all samples."""

    @property
    def counts(self) -> dict[str, int]:
        """The samples of each split."""
        heldout = -(-self.test * len(HELD_OUT) // len(SEEN))
        return {"train": self.train, "val": self.val, "test": self.test, "test_heldout": heldout}


@dataclass(frozen=True)
class SyntheticSummary:
    """The data set that `synthesize` wrote. A split of 0 samples is left out of `splits`."""

    root: Path
    splits: tuple[SyntheticSplit, ...]
    classnames: Path
    templates: Path

    @property
    def samples(self) -> int:
        """The samples of all splits."""
        return sum(split.samples for split in self.splits)


@dataclass(frozen=True)
class _Shard:
    """A tar to be written: the samples from `start` up to `stop` of a split."""

    path: Path
    split: str
    number: int
    start: int
    stop: int


def synthesize(
    out: Path,
    options: SyntheticOptions,
    *,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SyntheticSummary:
    """Write the data set. README.md comes last and marks it as complete.

    Args:
        out: Directory of the data set, which is new or empty.
        options: Contents of the data set.
        workers: Processes that write shards; 0 writes them in this process.
        progress: Called with the number of samples of each finished shard.

    Raises:
        UserError: If a size or count is out of range, or `out` is not empty or cannot be written.
    """
    _check(options, workers)
    _claim(out)

    counts = options.counts
    sizes: dict[_Shard, int] = {}

    def note(shard: _Shard, size: int) -> None:
        sizes[shard] = size
        if progress is not None:
            progress(shard.stop - shard.start)

    try:
        with staged_directory(out) as work:
            shards = [
                shard
                for split, count in counts.items()
                for shard in _plan(work, split, count, options.shard_size)
            ]
            for split, count in counts.items():
                if count:
                    (work / split).mkdir()

            _write_shards(shards, options, workers, note)
            splits = tuple(_summarize(out, split, sizes) for split, count in counts.items() if count)
            write_descriptions(work, splits, options.image_size, options.seed)
    except OSError as error:
        raise UserError(
            f"{out} can't be written ({words_of(error)}): free space or name another directory"
        ) from error

    return SyntheticSummary(out, splits, out / "classnames.txt", out / "templates.txt")


def _check(options: SyntheticOptions, workers: int) -> None:
    if options.image_size < MIN_IMAGE_SIZE:
        raise UserError(
            f"size is {options.image_size} pixels, but shapes need at least {MIN_IMAGE_SIZE}: "
            "give a larger --size"
        )

    for split, count in (("train", options.train), ("val", options.val), ("test", options.test)):
        if count < 0:
            raise UserError(f"{split} is {count} samples: give --{split} 0 or more")
    if options.train == 0:
        raise UserError("train is 0 samples: give --train 1 or more")

    if not 1 <= options.shard_size <= MAX_SHARD_SIZE:
        raise UserError(f"shard size is {options.shard_size} samples: give 1 to {MAX_SHARD_SIZE}")
    if workers < 0:
        raise UserError(f"workers is {workers}: give 0 (no extra process) or more")


def _claim(out: Path) -> None:
    """Make the directory, or raise UserError if it has entries."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        entry = next(out.iterdir(), None)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{out} can't be made a directory since a file is in its place: name another directory"
        ) from error
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); name another directory") from error

    if entry is not None:
        raise UserError(f"{out} is not empty (it holds {entry.name}): name a new directory or empty this one")


def _plan(out: Path, split: str, count: int, shard_size: int) -> list[_Shard]:
    starts = range(0, count, shard_size)
    return [
        _Shard(out / split / f"{number:05d}.tar", split, number, start, min(start + shard_size, count))
        for number, start in enumerate(starts)
    ]


def _write_shards(
    shards: list[_Shard], options: SyntheticOptions, workers: int, note: Callable[[_Shard, int], None]
) -> None:
    """Write all shards, and call `note` with the size in bytes of each finished one, in any order."""
    if workers == 0:
        for shard in shards:
            note(shard, _write_shard(shard, options))
        return

    # Fresh processes, not forks: the caller may have threads and locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, die_with_parent, (os.getpid(),)) as pool:
        futures = {pool.submit(_write_shard, shard, options): shard for shard in shards}
        try:
            for future in as_completed(futures):
                note(futures[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _write_shard(shard: _Shard, options: SyntheticOptions) -> int:
    """Write one tar, and return its size in bytes. Owner, time and order of its members are fixed."""
    with tarfile.open(shard.path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(shard.start, shard.stop):
            key = f"{shard.number:05d}{number - shard.start:04d}"
            members = sample_members(options.seed, shard.split, number, options.image_size, key)

            for extension, content in sorted(members.items()):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                member.mode = 0o444
                tar.addfile(member, io.BytesIO(content))

    return shard.path.stat().st_size


def _summarize(out: Path, split: str, sizes: dict[_Shard, int]) -> SyntheticSplit:
    """Return the summary of a split from the sizes of all shards, in bytes."""
    shards = sorted((shard for shard in sizes if shard.split == split), key=lambda shard: shard.number)
    first, last = shards[0].path.stem, shards[-1].path.stem
    name = f"{first}.tar" if first == last else f"{{{first}..{last}}}.tar"

    total = sum(sizes[shard] for shard in shards)
    return SyntheticSplit(split, str(out / split / name), len(shards), shards[-1].stop, total)
