"""Mixtures: shares are exact, each source has its own order, and both are functions of the position."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from support.readers import open_reader
from support.shards import caption, write_shards

from flipscale.budget import Budget
from flipscale.config import Augmentation, Phase
from flipscale.data.order.lanes import Lanes, digest, rank_positions
from flipscale.data.order.mixture import Mixture, Source, integer_weights
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.samples.stream import LaneShare, Stream
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.errors import UserError
from flipscale.order_digest import OrderDigest
from flipscale.runs.expected_order import expected_order, sample_keys

FEW = settings(max_examples=20, deadline=None)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], list[Source], Mixture]:
    lanes = draw(st.integers(1, 6))
    sources = [
        Source(draw(st.integers(1, 3)), draw(st.integers(1, 40)) / draw(st.sampled_from([1, 4, 10])))
        for _ in range(draw(st.integers(1, 4)))
    ]
    counts = [draw(st.integers(0, 9)) + lanes for source in sources for _ in range(source.shards)]
    window, seed = draw(st.integers(1, 7)), draw(st.integers(0, 99))
    return counts, sources, Mixture(counts, lanes, window, seed, sources, draw(st.sampled_from([1, 2])))


def source_of(sources: list[Source], shards: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum([source.shards for source in sources]), shards, side="right")


@FEW
@given(mixtures(), st.integers(1, 60))
def test_shares_are_those_of_the_weights(made, rows):
    _, sources, order = made
    positions = np.arange(rows * order.lanes, dtype=np.int64)
    which = source_of(sources, order.locate(positions).shards)
    weights = np.array([source.weight for source in sources])
    shares = weights / weights.sum()
    for lane in range(order.lanes):
        chosen = which[positions % order.lanes == lane]
        counts = np.bincount(chosen, minlength=len(sources))
        # Two sources are exact to the rounding of one sample; each further one may round once more.
        assert np.abs(counts - shares * rows).max() < max(1, len(sources) - 1) + 1e-6


@pytest.mark.parametrize("lanes", [6, 250, 1024])
@pytest.mark.parametrize(
    "weights", [[0.7, 0.3], [0.5, 0.25, 0.25], [10, 0.25, 3], [0.5, 0.3, 0.2], [6, 2.5, 1, 0.5], [1, 1, 1, 1]]
)
def test_each_batch_follows_the_weights(lanes: int, weights: list[float]):
    """With the first rule, up to 384 samples in 1,024 were of another source."""
    order = Mixture([lanes] * len(weights), lanes, 8, 3, [Source(1, float(weight)) for weight in weights])
    rows = 200
    which, _ = order.sources_at(np.arange(rows * lanes, dtype=np.int64))
    batches = np.stack([np.bincount(row, minlength=len(weights)) for row in which.reshape(rows, lanes)])
    wanted = lanes * np.array(weights) / sum(weights)
    most = 1 if len(weights) == 2 else 3
    assert np.abs(batches - wanted).max() <= most
    assert np.abs(batches.cumsum(axis=0) - wanted * np.arange(1, rows + 1)[:, None]).max() <= most


@FEW
@given(mixtures())
def test_every_source_is_read_epoch_by_epoch(made):
    """A source's samples in the order of their positions are those of an order of only this source."""
    counts, sources, order = made
    positions = np.arange(40 * order.lanes, dtype=np.int64)
    found = order.locate(positions)
    which = source_of(sources, found.shards)
    first = 0
    for number, source in enumerate(sources):
        single = Lanes(counts[first : first + source.shards], order.lanes, order.orders[0].window, order.seed)
        for lane in range(order.lanes):
            here = (which == number) & (positions % order.lanes == lane)
            own = np.arange(here.sum(), dtype=np.int64) * order.lanes + lane
            wanted = single.locate(own)
            assert (found.shards[here] - first).tolist() == wanted.shards.tolist()
            assert found.ordinals[here].tolist() == wanted.ordinals.tolist()
            size = single.lane_size(lane)
            epoch = list(zip(found.shards[here][:size], found.ordinals[here][:size], strict=True))
            assert len(set(epoch)) == len(epoch)
        first += source.shards


@FEW
@given(mixtures(), st.data())
def test_any_resume_point_equals_the_straight_read(made, data):
    _, _, order = made
    straight = order.locate(np.arange(30 * order.lanes, dtype=np.int64))
    start = data.draw(st.integers(0, 29)) * order.lanes
    again = order.locate(np.arange(start, 30 * order.lanes, dtype=np.int64))
    assert again.shards.tolist() == straight.shards[start:].tolist()
    assert again.ordinals.tolist() == straight.ordinals[start:].tolist()
    world_size = data.draw(st.sampled_from([n for n in range(1, order.lanes + 1) if order.lanes % n == 0]))
    for rank in range(world_size):
        own = rank_positions(0, 30 * order.lanes, order.lanes, rank, world_size)
        assert order.locate(own).ordinals.tolist() == straight.ordinals[own].tolist()


@FEW
@given(mixtures(), st.data())
def test_strands_invert_the_order(made, data):
    """The audit walks strands: a source's stretch of a lane, and the positions of its samples."""
    _, _, order = made
    first, stop = sorted(data.draw(st.tuples(st.integers(0, 200), st.integers(0, 200))))
    for lane in range(order.lanes):
        seen: list[int] = []
        for strand in order.strands(lane, first, stop):
            numbers = np.arange(strand.first, strand.stop, dtype=np.int64)
            positions = strand.positions(numbers)
            which, own = order.sources_at(positions)
            assert set(which.tolist()) <= {strand.source}
            assert own.tolist() == (numbers * order.lanes + lane).tolist()
            seen += positions.tolist()
        assert sorted(seen) == [number * order.lanes + lane for number in range(first, stop)]


@FEW
@given(mixtures(), st.data())
def test_the_audit_computes_what_replacements_read(made, data):
    counts, _, order = made
    everything = [(shard, ordinal) for shard, count in enumerate(counts) for ordinal in range(count)]
    bad = data.draw(st.sets(st.sampled_from(everything), max_size=len(everything) // 4))
    used: list[tuple[int, int, int]] = []
    for position in range(25 * order.lanes):
        here = np.array([position], dtype=np.int64)
        for attempt in range(order.window_size(position)):
            found = order.locate(here, attempt)
            if (pair := (int(found.shards[0]), int(found.ordinals[0]))) not in bad:
                used.append((position, *pair))
                break
        else:
            reject()  # training cannot pass such a window
    assert expected_order(order, sample_keys(bad), 0, 25 * order.lanes).digest == digest(*np.array(used).T)


def test_positions_far_into_a_run_are_exact():
    """At 100 billion samples seen, with weights of many digits: no overflow, no rounding."""
    sources = [Source(1, 0.123457), Source(1, 0.7), Source(1, 0.000011)]
    order = Mixture([5000, 70, 64], 64, 16, 3, sources)
    start = 10**11 // 64 * 64
    positions = np.arange(start, start + 64 * 500, dtype=np.int64)
    which, own = order.sources_at(positions)
    assert (own >= 0).all()
    weights = integer_weights([Fraction(repr(source.weight)) for source in sources])
    for number in range(3):
        passed = own[which == number][0] // 64 * 64
        assert passed == pytest.approx(start * weights[number] / sum(weights), rel=1e-4)
    strands = {strand.source: strand for strand in order.strands(7, start // 64, start // 64 + 500)}
    found = np.concatenate(
        [s.positions(np.arange(s.first, s.stop, dtype=np.int64)) for s in strands.values()]
    )
    assert sorted(found.tolist()) == positions[positions % 64 == 7].tolist()


def test_the_order_of_a_mixture_is_frozen():
    """A change of this would silently change every run of a mixture that is under way."""
    two = [Source(1, 1.0), Source(2, 2.5)]
    three = [Source(1, 1.0), Source(1, 2.5), Source(1, 2.0)]
    assert frozen(two, 1) == frozen(two, 2) == FROZEN
    assert frozen(three, 1) == FROZEN_ONE
    assert frozen(three, 2) == FROZEN_TWO


def frozen(sources: list[Source], turns: int) -> str:
    found = Mixture([5, 9, 8], 3, 4, 2023, sources, turns).locate(np.arange(24, dtype=np.int64))
    return " ".join(f"{shard}.{ordinal}" for shard, ordinal in zip(*found, strict=True))


FROZEN = "1.0 1.6 2.5 1.2 1.8 0.3 0.0 1.7 2.2 1.3 0.2 2.4 1.1 1.5 0.4 0.0 2.1 2.3 1.4 0.1 2.6 1.0 2.0 2.7"
FROZEN_ONE = "2.0 2.3 1.6 1.0 1.4 0.3 1.2 2.4 2.5 0.0 1.5 1.8 2.1 2.2 2.7 1.1 0.2 1.7 2.0 1.3 1.6 1.0 2.3 0.4"
FROZEN_TWO = "1.0 2.3 2.5 2.0 1.4 0.3 1.2 2.4 1.6 0.0 1.5 1.8 2.1 2.2 2.7 1.1 0.2 1.7 1.0 1.3 2.6 2.0 2.3 0.4"


def test_weights_and_sources_that_do_not_fit_are_refused():
    assert integer_weights([Fraction("0.3"), Fraction("0.7"), Fraction(2)]) == [3, 7, 20]
    assert integer_weights([Fraction(2**25), Fraction(2**26)]) == [1, 2]
    assert integer_weights([Fraction(1), Fraction(2**24 - 1)]) == [1, 2**24 - 1]
    with pytest.raises(UserError, match="too many digits"):
        integer_weights([Fraction(1), Fraction(2**24)])
    with pytest.raises(UserError, match=r"data\.weights .* too many digits"):
        Mixture([9, 9], 2, 4, 0, [Source(1, 0.123456789), Source(1, 1.0)])
    with pytest.raises(UserError, match=r"source number 2 of data\.train has only 3 image-caption pairs"):
        Mixture([9, 3], 4, 4, 0, [Source(1, 0.5), Source(1, 1.0)])
    with pytest.raises(UserError, match=r"data\.lanes is 4, but the training set has only 3 samples"):
        Mixture([3], 4, 4, 0)
    with pytest.raises(ValueError, match="the sources have 2 shards and not 3"):
        Mixture([9, 9, 9], 2, 4, 0, [Source(1, 1.0), Source(1, 1.0)])


def test_a_stream_of_a_mixture_reads_it(tmp_path, tokenizer):
    write_shards(tmp_path / "one", [30, 20])
    write_shards(tmp_path / "two", [40], {(0, 3): "half a jpeg", (0, 4): "blank caption"})
    pattern = f"{tmp_path}/one/{{00000..00001}}.tar::{tmp_path}/two/00000.tar"
    index = build_index(pattern, tmp_path / "index")
    order = Mixture(index.counts, 4, 8, 1, [Source(2, 3.0), Source(1, 1.0)])
    budget = Budget.of([Phase(name="a", samples=320, mask_ratio=0.0, batch_size=32, base_lr=1e-3)], 4)

    def read(rank: int, world_size: int, start: int = 0) -> list:
        reader = SampleReader(ShardSource(index), order, tokenizer, ReaderSettings(8, Augmentation(), 10**8))
        return list(Stream(reader, budget, LaneShare(4, rank, world_size), 0).batches(start))

    whole = read(0, 1)
    records = {(record.shard, record.ordinal) for batch in whole for record in batch.bad}
    assert records == {(2, 3), (2, 4)}
    total = sum((batch.digest for batch in whole), OrderDigest())
    assert total == expected_order(order, sample_keys(records), 0, 320, workers=2).digest
    assert total == sum((batch.digest for rank in range(2) for batch in read(rank, 2)), OrderDigest())
    assert [batch.digest for batch in read(0, 1, 160)] == [batch.digest for batch in whole[5:]]
    single, _ = open_reader(f"{tmp_path}/two/00000.tar", 4)
    assert tokenizer([caption(0)]).shape == single.read(np.array([0])).tokens.shape
