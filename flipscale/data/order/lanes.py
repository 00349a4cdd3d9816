"""The sample order: which sample comes at which position, as a pure function of index, seed and lanes.

The training set is divided into L lanes: contiguous ranges of the shards' concatenated samples, whose lengths
differ by at most one. A lane is endless. In every epoch, a hash permutes its pieces of shards, and then the
samples inside consecutive windows of the result.

Position p of the run belongs to lane p mod L and is that lane's sample number p div L. The global batch of
size B at `samples_seen` is therefore the positions from samples_seen to samples_seen + B. It depends neither
on the world size nor on the batch size nor on the loader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flipscale.errors import UserError
from flipscale.order_digest import ContentDigest, OrderDigest

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
UInt32s = npt.NDArray[np.uint32]

# Words that keep the hashes of different purposes apart.
_SHARD_ORDER = 1
_WINDOW_ORDER = 2
_AUGMENTATION = 3  # 4 to 6 are in mixture.py and in data/samples/captions.py
_CONTENT = 7

_INDEX_BITS = 24  # low bits of a sort key that hold the index itself, so that keys never tie
MAX_WINDOW = 1 << _INDEX_BITS


def hash64(*words: int | Int64s | UInt32s | UInt64s) -> UInt64s:
    """Hash words to 64 bits with a chain of splitmix64 finalisers, elementwise over broadcast arrays.

    Args:
        words: Integers or integer arrays. Negative integers count as their two's complement.

    Returns:
        uint64 array of the words' broadcast shape.
    """
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2**64
        for word in words:
            z = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = z ^ (z >> np.uint64(31))

    return state


def permutation(keys: UInt64s) -> Int64s:
    """Return the indices that sort the last axis by its hash keys.

    Args:
        keys: Hashes; keys whose high 40 bits are equal keep their order. The last axis has at most MAX_WINDOW
            elements.

    Returns:
        int64 array of the shape of `keys`.

    Raises:
        ValueError: If the last axis is too long.
    """
    size = keys.shape[-1]
    if size > MAX_WINDOW:
        raise ValueError(f"{size} elements are too many to permute at once (at most {MAX_WINDOW})")

    low = np.uint64(MAX_WINDOW - 1)
    unique = (keys & ~low) | np.arange(size, dtype=np.uint64)
    unique.sort(axis=-1)
    return (unique & low).astype(np.int64)


def uniforms(seed: int, positions: Int64s, draws: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers in [0, 1) for the augmentation of each position.

    Args:
        seed: The job's seed.
        positions: int64 (n,), positions of the run.
        draws: Numbers per position.

    Returns:
        float64 array of shape (n, draws).
    """
    bits = hash64(seed, _AUGMENTATION, positions[:, None], np.arange(draws, dtype=np.int64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def digest(positions: Int64s, shards: Int64s, ordinals: Int64s) -> OrderDigest:
    """Return the sum of hash64(position, shard number, ordinal in the shard) modulo 2**64.

    Args:
        positions: int64 (n,), positions of the run.
        shards: int64 (n,), shard numbers in the index.
        ordinals: int64 (n,), sample numbers in the shards.
    """
    return OrderDigest(int(hash64(positions, shards, ordinals).sum(dtype=np.uint64)))


def content_digest(positions: Int64s, checksums: UInt32s) -> ContentDigest:
    """Return the sum of `content_hashes` modulo 2**64; the arguments are the same."""
    return ContentDigest(int(content_hashes(positions, checksums).sum(dtype=np.uint64)))


def content_hashes(positions: Int64s, checksums: UInt32s) -> UInt64s:
    """Return the hash of each position with the content that was read there.

    Args:
        positions: int64 (n,), positions of the run.
        checksums: uint32 (n, 2), CRC-32 of the image and of the caption.
    """
    return hash64(_CONTENT, positions, checksums[:, 0], checksums[:, 1])


class Samples(NamedTuple):
    """Samples by shard number and by ordinal inside the shard; both arrays have the same length."""

    shards: Int64s
    ordinals: Int64s


@dataclass(frozen=True)
class _Lane:
    """The pieces of shards that make up a lane, in index order: samples first..first+length of each shard."""

    shards: Int64s
    firsts: Int64s
    lengths: Int64s
    size: int


class Lanes:
    """The sample order of one training set.

    Args:
        counts: Samples of each shard, in index order.
        lanes: Number of lanes L, at most the number of samples.
        window: Consecutive samples of a lane that are shuffled together.
        seed: The job's seed.

    Raises:
        UserError: If there are fewer samples than lanes, or the window is too large.
    """

    def __init__(self, counts: Sequence[int] | Int64s, lanes: int, window: int, seed: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.lanes = lanes
        self.window = window
        self.seed = seed
        self.samples = int(self.counts.sum())

        if self.samples < lanes:
            raise UserError(
                f"data.lanes is {lanes}, but the training set has only {self.samples} samples; "
                f"set data.lanes to at most {self.samples}"
            )
        if window > MAX_WINDOW:
            raise UserError(f"data.window is {window}; the largest is {MAX_WINDOW}")

        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._windows: OrderedDict[tuple[int, int, int], Samples] = OrderedDict()

    def lane_size(self, lane: int) -> int:
        """Return the number of samples of a lane, which is the length of its epoch."""
        low, high = self._bounds(lane)
        return high - low

    def locate(self, positions: Int64s, attempt: int = 0) -> Samples:
        """Return the samples at some positions.

        Args:
            positions: int64 (n,), positions of the run.
            attempt: 0 for the samples themselves, k > 0 for their k-th replacements within the window.
        """
        shards = np.empty(len(positions), dtype=np.int64)
        ordinals = np.empty(len(positions), dtype=np.int64)
        for i, position in enumerate(positions.tolist()):
            lane, number = position % self.lanes, position // self.lanes
            epoch, inside = divmod(number, self.lane_size(lane))
            order = self._window_order(lane, epoch, inside // self.window)
            at = (inside % self.window + attempt) % len(order.shards)
            shards[i] = order.shards[at]
            ordinals[i] = order.ordinals[at]

        return Samples(shards, ordinals)

    def window_size(self, position: int) -> int:
        """Return the number of samples in the window of `position`; as many samples can stand in for it."""
        lane, number = position % self.lanes, position // self.lanes
        size = self.lane_size(lane)
        return min(self.window, size - (number % size) // self.window * self.window)

    def order(self, lane: int, epoch: int, first: int, stop: int) -> Samples:
        """Return the samples of the windows first..stop of a lane's epoch, in the order of training."""
        size = self.lane_size(lane)
        low, high = first * self.window, min(stop * self.window, size)
        full = (high - low) // self.window * self.window

        inside = np.arange(min(self.window, high - low), dtype=np.int64)
        numbers = np.arange(first, first + full // self.window, dtype=np.int64)[:, None]
        keys = hash64(self.seed, _WINDOW_ORDER, lane, epoch, numbers, inside)
        indices = (low + (numbers - first) * self.window + permutation(keys)).ravel()

        rest = high - low - full
        if rest:  # the last window of an epoch is shorter
            last = first + full // self.window
            keys = hash64(self.seed, _WINDOW_ORDER, lane, epoch, last, inside[:rest])
            indices = np.concatenate([indices, low + full + permutation(keys)])

        return self._samples(lane, epoch, indices)

    def _samples(self, lane: int, epoch: int, indices: Int64s) -> Samples:
        """Return the samples number `indices` of a lane's epoch, before its windows are shuffled."""
        pieces = self._lane(lane)
        keys = hash64(self.seed, _SHARD_ORDER, lane, epoch, np.arange(len(pieces.shards), dtype=np.int64))
        order = permutation(keys)

        starts = np.concatenate([[0], np.cumsum(pieces.lengths[order])])
        which = np.searchsorted(starts, indices, side="right") - 1
        piece = order[which]
        return Samples(pieces.shards[piece], pieces.firsts[piece] + indices - starts[which])

    def _bounds(self, lane: int) -> tuple[int, int]:
        return lane * self.samples // self.lanes, (lane + 1) * self.samples // self.lanes

    def _lane(self, lane: int) -> _Lane:
        low, high = self._bounds(lane)
        begin = int(np.searchsorted(self._starts, low, side="right")) - 1
        end = int(np.searchsorted(self._starts, high, side="left"))

        shards = np.arange(begin, end, dtype=np.int64)
        firsts = np.maximum(low - self._starts[begin:end], 0)
        stops = np.minimum(high - self._starts[begin:end], self.counts[begin:end])
        kept = stops > firsts  # empty shards leave no piece
        return _Lane(shards[kept], firsts[kept], (stops - firsts)[kept], high - low)

    def _window_order(self, lane: int, epoch: int, number: int) -> Samples:
        """Return the order of one window. It is cached: consecutive positions of a lane share a window."""
        key = (lane, epoch, number)
        known = self._windows.get(key)
        if known is None:
            known = self._windows[key] = self.order(lane, epoch, number, number + 1)
            if len(self._windows) > 2 * self.lanes:
                self._windows.popitem(last=False)
        return known


def rank_positions(start: int, size: int, lanes: int, rank: int, world_size: int) -> Int64s:
    """Return the positions of the global batch [start, start + size) that one process reads.

    Args:
        start: First position of the batch; a multiple of `lanes`.
        size: Samples of the global batch; a multiple of `lanes`.
        lanes: Number of lanes; a multiple of `world_size`.
        rank: Data-parallel rank of the process, which reads the lanes of its share.
        world_size: Number of data-parallel processes.

    Returns:
        int64 array of shape (size / world_size,), in the order in which the process reads them.
    """
    share = lanes // world_size
    rows = np.arange(start, start + size, dtype=np.int64).reshape(-1, lanes)
    return rows[:, rank * share : (rank + 1) * share].ravel()
