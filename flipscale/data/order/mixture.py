"""Several sources with weights in one sample order: which source is read at which position.

Position p belongs to lane l = p mod L, as in a training set of one source. Every source has its own lane l,
and lane l of the mixture takes from these in turn. Before its position number n = p div L, it has taken
floor(n w_0 + phase_0l) samples of the first source. Of the n' samples that remain, it has taken
floor(n' w_1 / (1 - w_0) + phase_1l) of the second source, and so on.

In each lane, the counts follow the weights to within one sample per source. In each batch and in total they
do so as well, since the phases are spread evenly over the lanes: those of the second source over every group
of lanes to which the first one has just given the same number of samples, and so on (a Halton sequence). All
of this is integer arithmetic: the position of sample number k of a source's lane has a closed form, which the
audit needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np

from flipscale.config import Data
from flipscale.data.order.lanes import Int64s, Lanes, Samples, hash64, permutation
from flipscale.data.shards.index import expand_shards
from flipscale.errors import UserError

TURNS = 2
"""The version of the rule by which lanes take from the sources in turn.

In version 1, a lane had one phase for all sources. Three sources in 1,024 lanes with the weights 2, 1, 1 then
gave batches with 0, 25 or 50 % of the second source in place of 25 %. Both are the same for two sources.
"""

_MIXTURE = 4  # word of the hash that spreads the lanes' phases; those of lanes.py are 1 to 3
_LARGEST_SUM = 1 << 24  # of integer weights, so that positions below 2**38 times it stay below 2**63


@dataclass(frozen=True)
class Source:
    """A source: a range of the index's shards, and its share of the samples seen."""

    shards: int
    """Number of shards."""
    weight: float
    """Share of the samples seen, relative to the weights of the other sources."""


@dataclass(frozen=True)
class Strand:
    """The samples that one lane of the mixture takes from one source: those number first..stop."""

    order: Lanes
    """Sample order of the source."""
    lane: int
    first: int
    """Number of the first sample in the source's lane."""
    stop: int
    """Number of the sample behind the last one."""
    mixture: Mixture
    source: int
    """Number of the source in the mixture."""

    def positions(self, numbers: Int64s) -> Int64s:
        """Return the positions of the run at which the source's samples `numbers` of this lane are read."""
        return self.mixture.positions(self.source, self.lane, numbers)


class Mixture:
    """The sample order over several sources. With a single source, it is the order of its `Lanes`.

    Args:
        counts: Samples of each shard, in index order.
        lanes: Number of lanes; every source is divided among all of them.
        window: Consecutive samples of a source's lane that are shuffled together.
        seed: The job's seed.
        sources: Sources that cover the shards in order; default: one source of all shards.
        turns: Version of the rule by which lanes take from the sources in turn.

    Raises:
        UserError: If a source has fewer samples than lanes, or the weights cannot be kept exactly.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int64s,
        lanes: int,
        window: int,
        seed: int,
        sources: Sequence[Source] = (),
        turns: int = TURNS,
    ) -> None:
        counts = np.asarray(counts, dtype=np.int64)
        sources = sources or [Source(len(counts), 1.0)]
        stops = np.cumsum([source.shards for source in sources])
        if stops[-1] != len(counts):
            raise ValueError(f"the sources have {stops[-1]} shards and not {len(counts)}")

        shards = np.arange(len(counts))
        self.lanes = lanes
        self.seed = seed
        self.orders: list[Lanes] = []
        for number, (source, stop) in enumerate(zip(sources, stops.tolist(), strict=True)):
            own = np.where((shards >= stop - source.shards) & (shards < stop), counts, 0)
            if own.sum() < lanes and len(sources) > 1:
                raise UserError(
                    f"source number {number + 1} of data.train has only {own.sum()} image-caption pairs, but "
                    f"data.lanes is {lanes}; leave the source out, or set data.lanes to fewer"
                )
            # The other sources' shards count as empty, so that shards keep their numbers.
            self.orders.append(Lanes(own, lanes, window, seed))

        self.samples = sum(order.samples for order in self.orders)
        self._weights = integer_weights([Fraction(repr(source.weight)) for source in sources])

        # In units of 1 / lanes: one row per source but the last, which takes what is left.
        first = _ranks(permutation(hash64(seed, _MIXTURE, np.arange(lanes, dtype=np.int64))))
        later = [_halton(lanes, base)[first] if turns > 1 else first for base in _primes(len(sources) - 2)]
        self._phases = [first, *later]

    def locate(self, positions: Int64s, attempt: int = 0) -> Samples:
        """Return the samples at some positions.

        Args:
            positions: int64 (n,), positions of the run.
            attempt: 0 for the samples themselves, k > 0 for their k-th replacements within the window.
        """
        if len(self.orders) == 1:
            return self.orders[0].locate(positions, attempt)

        which, own = self.sources_at(positions)
        shards = np.empty_like(positions)
        ordinals = np.empty_like(positions)
        for number, order in enumerate(self.orders):
            at = which == number
            if at.any():
                shards[at], ordinals[at] = order.locate(own[at], attempt)

        return Samples(shards, ordinals)

    def window_size(self, position: int) -> int:
        """Return the number of samples in the window of `position`; as many samples can stand in for it."""
        if len(self.orders) == 1:
            return self.orders[0].window_size(position)

        which, own = self.sources_at(np.array([position], dtype=np.int64))
        return self.orders[int(which[0])].window_size(int(own[0]))

    def sources_at(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Return the source that is read at each position, and the position in that source's own order.

        Args:
            positions: int64 (n,), positions of the run.

        Returns:
            Two int64 arrays of shape (n,).
        """
        lanes, left = positions % self.lanes, positions // self.lanes
        which = np.full(len(positions), len(self.orders) - 1, dtype=np.int64)
        number = np.zeros(len(positions), dtype=np.int64)
        open_ = np.ones(len(positions), dtype=bool)

        for source in range(len(self.orders) - 1):
            before = self._taken(source, left, lanes)
            after = self._taken(source, left + 1, lanes)
            here = open_ & (after > before)
            which[here] = source
            number[here] = before[here]
            open_ &= ~here
            left = left - before

        number[open_] = left[open_]
        return which, number * self.lanes + lanes

    def strands(self, lane: int, first: int, stop: int) -> Iterator[Strand]:
        """Yield the samples that a lane takes from each source at its positions number first..stop."""
        ends = np.array([first, stop], dtype=np.int64)
        lanes = np.full(2, lane, dtype=np.int64)
        for source, order in enumerate(self.orders):
            taken = ends if source == len(self.orders) - 1 else self._taken(source, ends, lanes)
            yield Strand(order, lane, int(taken[0]), int(taken[1]), self, source)
            ends = ends - taken

    def positions(self, source: int, lane: int, numbers: Int64s) -> Int64s:
        """Return the positions at which samples `numbers` of a source's lane are read.

        Args:
            source: Number of the source.
            lane: Number of the lane.
            numbers: int64 (n,), sample numbers in the source's lane.

        Returns:
            int64 array of shape (n,), positions of the run.
        """
        if source < len(self.orders) - 1:
            # Sample k is taken at the last n with floor(n w + phase) = k.
            own, rest = self._share(source)
            phase = int(self._phases[source][lane])
            numbers = -(-((numbers + 1) * self.lanes - phase) * rest // (own * self.lanes)) - 1
        for earlier in range(min(source, len(self.orders) - 1) - 1, -1, -1):
            # Number m of the samples that an earlier source left: n is m plus the samples taken until then.
            own, rest = self._share(earlier)
            others = rest - own
            phase = int(self._phases[earlier][lane])
            taken = (numbers * own * self.lanes + phase * rest) // (others * self.lanes)
            numbers = numbers + taken

        return numbers * self.lanes + lane

    def _share(self, source: int) -> tuple[int, int]:
        """Return the source's weight, and the sum of its weight and those of all later sources."""
        return self._weights[source], sum(self._weights[source:])

    def _taken(self, source: int, numbers: Int64s, lanes: Int64s) -> Int64s:
        """Return how many samples of a source come before the numbers-th that the earlier sources left."""
        own, rest = self._share(source)
        return (numbers * (own * self.lanes) + self._phases[source][lanes] * rest) // (rest * self.lanes)


def _halton(lanes: int, base: int) -> Int64s:
    """Return where each number below `lanes` stands if all are sorted by their reversed digits, (lanes,)."""
    numbers = np.arange(lanes, dtype=np.int64)
    reversed_ = np.zeros(lanes, dtype=np.int64)
    power = 1
    while power < lanes:
        reversed_ = reversed_ * base + numbers % base
        numbers //= base
        power *= base
    return _ranks(np.argsort(reversed_))


def _ranks(order: Int64s) -> Int64s:
    """Return the inverse of a permutation."""
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order), dtype=np.int64)
    return ranks


def _primes(count: int) -> list[int]:
    """Return the first primes."""
    primes: list[int] = []
    number = 2
    while len(primes) < count:
        if all(number % prime for prime in primes):
            primes.append(number)
        number += 1
    return primes


def shards_by_source(data: Data) -> list[int] | None:
    """Return the number of shards of each pattern in data.train, or None if the patterns have no weights."""
    if data.weights is None:
        return None
    return [len(expand_shards(pattern)) for pattern in data.train.split("::")]


def job_sources(data: Data, shards: Sequence[int] | None) -> list[Source]:
    """Return the sources of a training set; none if its patterns have no weights.

    Args:
        data: The job's data block.
        shards: Number of shards of each pattern, or None (see `shards_by_source`).
    """
    if shards is None or data.weights is None:
        return []
    return [Source(count, weight) for count, weight in zip(shards, data.weights, strict=True)]


def integer_weights(weights: Sequence[Fraction]) -> list[int]:
    """Return the weights as integers in the same proportion.

    Raises:
        UserError: If their sum would be above 2**24.
    """
    whole = [int(weight * lcm(*(w.denominator for w in weights))) for weight in weights]
    common = np.gcd.reduce(whole)
    if sum(whole) // int(common) > _LARGEST_SUM:
        raise UserError(
            f"data.weights ({', '.join(str(float(weight)) for weight in weights)}) have too many digits "
            "to be kept exactly; round them"
        )

    return [number // int(common) for number in whole]
