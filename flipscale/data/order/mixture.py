"""Several sources with weights in one sample order: which source stands at which position.

Position p belongs to lane l = p mod L, as in a training set of one source. Every source has a lane l of its
own, and lane l of the mixture takes from them in turn: before its position number n = p div L it has taken
floor(n w_0 + phase_l) samples of the first source, and of the n' that remain floor(n' w_1 / (1 - w_0) +
phase_l) of the second, and so on. Counts are therefore those of the weights, to within a few samples, in each
lane and over all; as the phases of the lanes are spread evenly, also in each batch. All of it is integer
arithmetic, so that sample number k of a source's lane has its position in closed form, which the audit needs.
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

_MIXTURE = 4  # word of the hash that spreads the lanes' phases; those of lanes.py are 1 to 3
_LARGEST_SUM = 1 << 24  # of integer weights, so that positions below 2**38 times it stay below 2**63


@dataclass(frozen=True)
class Source:
    """A stretch of the index's shards, and its share of the samples seen."""

    shards: int
    weight: float


@dataclass(frozen=True)
class Strand:
    """What one lane takes from one source: its samples number first..stop, and the lane they stand in."""

    order: Lanes
    lane: int
    first: int
    stop: int
    mixture: Mixture
    source: int

    def positions(self, numbers: Int64s) -> Int64s:
        """Positions of the run that the source's samples `numbers` of this lane stand at."""
        return self.mixture.positions(self.source, self.lane, numbers)


class Mixture:
    """The sample order over sources; of a single one it is the order of its Lanes.

    Args:
        counts, lanes, window, seed: as Lanes takes them; every source is dealt to all lanes.
        sources: cover the shards in order; one source by default.

    Raises UserError where a source has fewer samples than lanes, or weights cannot be kept exactly.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int64s,
        lanes: int,
        window: int,
        seed: int,
        sources: Sequence[Source] = (),
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
        self._phases = np.empty(lanes, dtype=np.int64)
        spread = permutation(hash64(seed, _MIXTURE, np.arange(lanes, dtype=np.int64)))
        self._phases[spread] = np.arange(lanes, dtype=np.int64)

    def locate(self, positions: Int64s, attempt: int = 0) -> Samples:
        """Return the samples at `positions`; attempt k > 0 is the k-th replacement within the window."""
        if len(self.orders) == 1:
            return self.orders[0].locate(positions, attempt)
        which, own = self.sources_at(positions)
        shards, ordinals = np.empty_like(positions), np.empty_like(positions)
        for number, order in enumerate(self.orders):
            at = which == number
            if at.any():
                shards[at], ordinals[at] = order.locate(own[at], attempt)
        return Samples(shards, ordinals)

    def window_size(self, position: int) -> int:
        """Samples in the window that `position` falls in; it has as many candidates."""
        if len(self.orders) == 1:
            return self.orders[0].window_size(position)
        which, own = self.sources_at(np.array([position], dtype=np.int64))
        return self.orders[int(which[0])].window_size(int(own[0]))

    def sources_at(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Return the source of each position, and its position in that source's own order."""
        lanes, left = positions % self.lanes, positions // self.lanes
        which = np.full(len(positions), len(self.orders) - 1, dtype=np.int64)
        number = np.zeros(len(positions), dtype=np.int64)
        open_ = np.ones(len(positions), dtype=bool)
        for source in range(len(self.orders) - 1):
            before, after = self._taken(source, left, lanes), self._taken(source, left + 1, lanes)
            here = open_ & (after > before)
            which[here], number[here] = source, before[here]
            open_ &= ~here
            left = left - before
        number[open_] = left[open_]
        return which, number * self.lanes + lanes

    def strands(self, lane: int, first: int, stop: int) -> Iterator[Strand]:
        """What lane number `lane` takes from each source at its positions number first..stop."""
        ends = np.array([first, stop], dtype=np.int64)
        lanes = np.full(2, lane, dtype=np.int64)
        for source, order in enumerate(self.orders):
            taken = ends if source == len(self.orders) - 1 else self._taken(source, ends, lanes)
            yield Strand(order, lane, int(taken[0]), int(taken[1]), self, source)
            ends = ends - taken

    def positions(self, source: int, lane: int, numbers: Int64s) -> Int64s:
        """Positions at which samples `numbers` of a source's lane stand."""
        phase = int(self._phases[lane])
        if source < len(self.orders) - 1:
            # Sample k is taken at the last n with floor(n w + phase) = k.
            own, rest = self._share(source)
            numbers = -(-((numbers + 1) * self.lanes - phase) * rest // (own * self.lanes)) - 1
        for earlier in range(min(source, len(self.orders) - 1) - 1, -1, -1):
            # Number m of what an earlier source left: n is m and the samples taken by then.
            own, rest = self._share(earlier)
            others = rest - own
            taken = (numbers * own * self.lanes + phase * rest) // (others * self.lanes)
            numbers = numbers + taken
        return numbers * self.lanes + lane

    def _share(self, source: int) -> tuple[int, int]:
        """The source's weight, and that of it and all later ones."""
        return self._weights[source], sum(self._weights[source:])

    def _taken(self, source: int, numbers: Int64s, lanes: Int64s) -> Int64s:
        """Samples taken from a source before the numbers-th of those that the earlier ones left."""
        own, rest = self._share(source)
        return (numbers * (own * self.lanes) + self._phases[lanes] * rest) // (rest * self.lanes)


def shards_by_source(data: Data) -> list[int] | None:
    """Shards of each of the patterns that data.train joins, where these have weights."""
    if data.weights is None:
        return None
    return [len(expand_shards(pattern)) for pattern in data.train.split("::")]


def job_sources(data: Data, shards: Sequence[int] | None) -> list[Source]:
    """The sources of a training set whose patterns have `shards` shards each; none without weights."""
    if shards is None or data.weights is None:
        return []
    return [Source(int(count), weight) for count, weight in zip(shards, data.weights, strict=True)]


def integer_weights(weights: Sequence[Fraction]) -> list[int]:
    """The weights as integers in the same proportion. Raises UserError where these would be too large."""
    whole = [int(weight * lcm(*(w.denominator for w in weights))) for weight in weights]
    common = np.gcd.reduce(whole)
    if sum(whole) // int(common) > _LARGEST_SUM:
        raise UserError(
            f"data.weights ({', '.join(str(float(weight)) for weight in weights)}) have too many digits "
            "to be kept exactly; round them"
        )
    return [number // int(common) for number in whole]
