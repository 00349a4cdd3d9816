"""What the sample order prescribes: the digests of any range of positions, from index and quarantine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flipscale.child_process import FORK, die_with_parent
from flipscale.data.order.lanes import Int64s, Samples, content_hashes, hash64
from flipscale.data.order.mixture import Mixture, Strand
from flipscale.data.shards.checksums import SampleChecksums
from flipscale.order_digest import ContentDigest, OrderDigest

_SAMPLES_AT_ONCE = 1 << 19  # bounds the memory of a process
_ORDINAL_BITS = 40  # the low bits of a sample key; the shard number is above them

Bools = npt.NDArray[np.bool_]
Uint64s = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Expected:
    """The reads that the sample order prescribes for a range of positions.

    Attributes:
        digest: Order digest of the range.
        content: Content digest of the range; None if the checksums of the samples are not known.
        replaced: Number of positions whose own sample is unusable, so that another of its window replaces it.
    """

    digest: OrderDigest
    replaced: int
    content: ContentDigest | None = None


def sample_keys(samples: Iterable[tuple[int, int]]) -> Int64s:
    """Return one key per sample.

    Args:
        samples: (shard number, ordinal) of each sample.

    Returns:
        int64 array of shape (n,), sorted, without repeats.
    """
    return np.unique(np.array([shard << _ORDINAL_BITS | ordinal for shard, ordinal in samples], np.int64))


def expected_order(order: Mixture, bad: Int64s, start: int, stop: int, *, workers: int = 1) -> Expected:
    """Return what the sample order prescribes for a range of positions.

    Args:
        order: The sample order of the run.
        bad: `sample_keys` of the samples that could not be used.
        start: First position, a multiple of the number of lanes.
        stop: End of the range (exclusive), a multiple of the number of lanes.
        workers: Number of processes that share the lanes.
    """
    return expected_orders(order, bad, [start, stop], workers=workers)[0]


def expected_orders(
    order: Mixture,
    bad: Int64s,
    cuts: Sequence[int],
    *,
    checksums: SampleChecksums | None = None,
    workers: int = 1,
) -> list[Expected]:
    """Return what the sample order prescribes between each two consecutive cuts.

    Args:
        order: The sample order of the run.
        bad: `sample_keys` of the samples that could not be used.
        cuts: At least two positions in ascending order, multiples of the number of lanes.
        checksums: The checksums of the samples, if they are known.
        workers: Number of processes that share the lanes.
    """
    total = _Sums.empty(len(cuts) - 1)
    one_lane = partial(_lane_order, order, bad, np.asarray(cuts, np.int64), checksums)

    def add(parts: Iterable[_Sums]) -> None:
        for part in parts:
            for column, own in zip(total, part, strict=True):
                np.add(column, own, out=column)

    if workers > 1:
        with ProcessPoolExecutor(workers, FORK, die_with_parent, (os.getpid(),)) as pool:
            add(pool.map(one_lane, range(order.lanes), chunksize=-(-order.lanes // (4 * workers))))
    else:
        add(map(one_lane, range(order.lanes)))

    return [
        Expected(OrderDigest(digest), replaced, None if checksums is None else ContentDigest(content))
        for digest, replaced, content in zip(*(column.tolist() for column in total), strict=True)
    ]


class _Sums(NamedTuple):
    """The sums between each two consecutive cuts, each of shape (cuts - 1,)."""

    digests: Uint64s
    replaced: Int64s
    contents: Uint64s

    @classmethod
    def empty(cls, count: int) -> _Sums:
        return cls(np.zeros(count, np.uint64), np.zeros(count, np.int64), np.zeros(count, np.uint64))


def _lane_order(
    order: Mixture, bad_keys: Int64s, cuts: Int64s, checksums: SampleChecksums | None, lane: int
) -> _Sums:
    """Return the sums of one lane."""
    sums = _Sums.empty(len(cuts) - 1)

    for strand in order.strands(lane, int(cuts[0]) // order.lanes, int(cuts[-1]) // order.lanes):
        for number, samples in _whole_windows(strand):
            used, bad = _with_replacements(strand.order.window, bad_keys, samples)

            # Replacement needs whole windows; only the strand's own samples count.
            low = max(strand.first - number, 0)
            high = min(strand.stop - number, len(samples.shards))
            positions = strand.positions(number + np.arange(low, high, dtype=np.int64))
            part = np.searchsorted(cuts, positions, side="right") - 1
            shards = used.shards[low:high]
            ordinals = used.ordinals[low:high]
            np.add.at(sums.digests, part, hash64(positions, shards, ordinals))
            np.add.at(sums.replaced, part, bad[low:high])
            if checksums is not None:
                contents = content_hashes(positions, checksums.of(shards, ordinals))
                np.add.at(sums.contents, part, contents)

    return sums


def _whole_windows(strand: Strand) -> Iterator[tuple[int, Samples]]:
    """Yield whole windows that cover a strand: the number of the first sample, and the samples."""
    order = strand.order
    size = order.lane_size(strand.lane)
    windows_at_once = max(1, _SAMPLES_AT_ONCE // order.window)

    number = strand.first
    while number < strand.stop:
        epoch, inside = divmod(number, size)
        window = inside // order.window
        # Samples of one epoch only: the next one has another permutation.
        windows_needed = -(-(strand.stop - epoch * size) // order.window)
        stop = min(window + windows_at_once, windows_needed, -(-size // order.window))
        yield epoch * size + window * order.window, order.order(strand.lane, epoch, window, stop)
        number = epoch * size + min(stop * order.window, size)


def _with_replacements(window_size: int, bad_keys: Int64s, own: Samples) -> tuple[Samples, Bools]:
    """Replace every bad sample by the next good one of its window.

    Args:
        window_size: Samples per window.
        bad_keys: `sample_keys` of all bad samples of the run.
        own: The samples that the order prescribes, in whole windows.

    Returns:
        The samples that were used, and for each of them whether its own sample was bad.
    """
    keys = own.shards << _ORDINAL_BITS | own.ordinals
    # A lane is a range of the index, so that few of the run's bad samples can be in it.
    near = bad_keys[np.searchsorted(bad_keys, keys.min()) : np.searchsorted(bad_keys, keys.max(), "right")]
    bad = np.zeros(len(keys), dtype=bool)
    if len(near):
        bad = near[np.minimum(np.searchsorted(near, keys), len(near) - 1)] == keys
    if not bad.any():
        return own, bad

    places = np.flatnonzero(bad)
    good = np.append(np.flatnonzero(~bad), len(bad))  # the end is a sentinel for the search
    window_start = places // window_size * window_size

    # The next good sample; past the end of the window, the search wraps to its first good sample.
    used = good[np.searchsorted(good, places)]
    outside = used >= np.minimum(window_start + window_size, len(bad))
    used[outside] = good[np.searchsorted(good, window_start[outside])]
    # Training cannot pass a window without a good sample, so that no finished range contains one.
    used = np.minimum(used, len(bad) - 1)

    shards = own.shards.copy()
    shards[places] = own.shards[used]
    ordinals = own.ordinals.copy()
    ordinals[places] = own.ordinals[used]
    return Samples(shards, ordinals), bad
