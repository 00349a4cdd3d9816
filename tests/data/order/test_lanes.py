"""The sample order against a slow direct reference, and against frozen values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flipscale.data.order.lanes import (
    MAX_WINDOW,
    Lanes,
    digest,
    hash64,
    permutation,
    rank_positions,
    uniforms,
)
from flipscale.errors import UserError
from flipscale.models import masking

WORD = 2**64
Pair = tuple[int, int]  # shard number, ordinal in the shard


def slow_hash(*words: int) -> int:
    state = 0
    for word in words:
        z = ((state ^ (word % WORD)) + 0x9E3779B97F4A7C15) % WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        state = z ^ (z >> 31)
    return state


def slow_sorted(count: int, *words: int) -> list[int]:
    """Return 0 to count - 1, sorted by the high 40 bits of their hashes."""
    return sorted(range(count), key=lambda i: (slow_hash(*words, i) >> 24, i))


def slow_lane(counts: Sequence[int], lanes: int, lane: int) -> list[Pair]:
    everything = [(shard, ordinal) for shard, count in enumerate(counts) for ordinal in range(count)]
    low, high = lane * len(everything) // lanes, (lane + 1) * len(everything) // lanes
    return everything[low:high]


def slow_pieces(counts: Sequence[int], lanes: int, seed: int, lane: int, epoch: int) -> list[Pair]:
    """Return a lane's epoch before its windows are shuffled."""
    own = slow_lane(counts, lanes, lane)
    pieces = [[pair for pair in own if pair[0] == shard] for shard in sorted({pair[0] for pair in own})]
    return [pair for number in slow_sorted(len(pieces), seed, 1, lane, epoch) for pair in pieces[number]]


def slow_order(
    counts: Sequence[int], lanes: int, window: int, seed: int, lane: int, epoch: int
) -> list[Pair]:
    """Return one epoch of a lane, written only from the docstrings."""
    pieces = slow_pieces(counts, lanes, seed, lane, epoch)
    order: list[Pair] = []
    for number in range(-(-len(pieces) // window)):
        inside = pieces[number * window : (number + 1) * window]
        order += [inside[i] for i in slow_sorted(len(inside), seed, 2, lane, epoch, number)]
    return order


def pairs(samples: tuple[np.ndarray, np.ndarray]) -> list[Pair]:
    return list(zip(samples[0].tolist(), samples[1].tolist(), strict=True))


def whole_epoch(order: Lanes, lane: int, epoch: int) -> list[Pair]:
    return pairs(order.order(lane, epoch, 0, -(-order.lane_size(lane) // order.window)))


@st.composite
def sets(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    """Draw shard counts (some of them 0), lanes, window and seed."""
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(lambda c: sum(c) > 0))
    lanes = draw(st.integers(1, sum(counts)))
    window = draw(st.integers(1, 20))
    return counts, lanes, window, draw(st.integers(0, 2**63 - 1))


FEW = settings(max_examples=60)


@FEW
@given(sets())
@example(([0, 0, 5, 0], 5, 3, 0))
@example(([1], 1, 1, 2**63 - 1))
@example(([7, 7], 3, 14, 1))
def test_the_order_is_that_of_the_slow_reference(made):
    counts, lanes, window, seed = made
    order = Lanes(counts, lanes, window, seed)
    for lane in range(lanes):
        for epoch in (0, 1, 7):
            assert whole_epoch(order, lane, epoch) == slow_order(counts, lanes, window, seed, lane, epoch)


@FEW
@given(sets())
def test_every_sample_comes_once_each_lane_epoch(made):
    counts, lanes, window, seed = made
    order = Lanes(counts, lanes, window, seed)
    everything = [(shard, ordinal) for shard, count in enumerate(counts) for ordinal in range(count)]
    for epoch in (0, 3):
        assert sorted(p for lane in range(lanes) for p in whole_epoch(order, lane, epoch)) == everything
    sizes = {order.lane_size(lane) for lane in range(lanes)}
    assert max(sizes) - min(sizes) <= 1
    assert sum(order.lane_size(lane) for lane in range(lanes)) == order.samples == sum(counts)


@FEW
@given(sets(), st.data())
def test_locate_reads_the_order_from_anywhere(made, data):
    counts, lanes, window, seed = made
    straight: list[Pair] = []
    streams = [
        [p for epoch in range(4) for p in slow_order(counts, lanes, window, seed, lane, epoch)]
        for lane in range(lanes)
    ]
    last = min(len(stream) for stream in streams) * lanes
    straight = [streams[position % lanes][position // lanes] for position in range(last)]
    start = data.draw(st.integers(0, last - 1))
    found = Lanes(counts, lanes, window, seed).locate(np.arange(start, last, dtype=np.int64))
    assert pairs(found) == straight[start:]
    shuffled = np.array(data.draw(st.permutations(range(start, min(last, start + 10)))), dtype=np.int64)
    found = Lanes(counts, lanes, window, seed).locate(shuffled)
    assert pairs(found) == [straight[position] for position in shuffled]


def test_long_read_keeps_only_the_last_windows():
    order = Lanes([40, 60], 4, 5, 0)
    order.locate(np.arange(10_000, dtype=np.int64))  # 100 epochs of 5 windows a lane
    assert len(order._windows) <= 2 * 4
    assert {(lane, 99, 4) for lane in range(4)} <= order._windows.keys()


@FEW
@given(sets(), st.data())
def test_a_window_holds_consecutive_samples_and_nothing_else(made, data):
    counts, lanes, window, seed = made
    order = Lanes(counts, lanes, window, seed)
    lane, epoch = data.draw(st.integers(0, lanes - 1)), data.draw(st.integers(0, 5))
    unshuffled = slow_pieces(counts, lanes, seed, lane, epoch)
    windows = -(-len(unshuffled) // window)
    first = data.draw(st.integers(0, windows - 1))
    stop = data.draw(st.integers(first + 1, windows))
    assert sorted(pairs(order.order(lane, epoch, first, stop))) == sorted(
        unshuffled[first * window : stop * window]
    )


@FEW
@given(sets(), st.data())
def test_replacements_walk_once_round_the_window(made, data):
    counts, lanes, window, seed = made
    order = Lanes(counts, lanes, window, seed)
    position = data.draw(st.integers(0, 5 * sum(counts)))
    size = order.window_size(position)
    here = np.array([position], dtype=np.int64)
    candidates = [pairs(order.locate(here, attempt))[0] for attempt in range(size)]
    lane, number = position % lanes, position // lanes
    epoch, inside = divmod(number, order.lane_size(lane))
    begin = inside // window * window
    members = slow_order(counts, lanes, window, seed, lane, epoch)[begin : begin + window]
    assert candidates == members[inside - begin :] + members[: inside - begin]


@given(st.integers(1, 12), st.integers(0, 20), st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_ranks_partition_every_batch(lanes, start, sizes):
    for world_size in [n for n in range(1, lanes + 1) if lanes % n == 0]:
        seen = start * lanes
        for size in sizes:
            parts = [
                rank_positions(seen, size * lanes, lanes, rank, world_size) for rank in range(world_size)
            ]
            assert sorted(np.concatenate(parts).tolist()) == list(range(seen, seen + size * lanes))
            for rank, part in enumerate(parts):
                share = lanes // world_size
                assert set(part % lanes) == set(range(rank * share, (rank + 1) * share))
                assert len(part) == size * share
            seen += size * lanes


def test_the_order_does_not_depend_on_the_batch_size():
    order = Lanes([40, 3, 57], 4, 8, 1)

    def read(sizes: Sequence[int]) -> list[Pair]:
        starts = np.cumsum([0, *sizes[:-1]])
        batches = zip(starts.tolist(), sizes, strict=True)
        return [p for start, n in batches for p in pairs(order.locate(rank_positions(start, n, 4, 0, 1)))]

    assert read([96]) == read([4] * 24) == read([32] * 3) == read([8, 64, 24])


def test_seeds_epochs_and_lanes_shuffle_differently():
    counts = [50] * 8
    orders = {
        tuple(whole_epoch(Lanes(counts, 2, 16, seed), 0, epoch)) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16
    windows = [
        tuple(p[1] % 16 for p in pairs(Lanes([160], 1, 16, 0).order(0, 0, w, w + 1))) for w in range(10)
    ]
    assert len(set(windows)) == 10


def test_too_many_lanes_and_too_large_windows_are_refused():
    with pytest.raises(UserError, match=r"data.lanes is 9, .* only 8 samples; set data.lanes to at most 8"):
        Lanes([5, 3], 9, 4, 0)
    with pytest.raises(UserError, match=r"data\.window is"):
        Lanes([5, 3], 2, MAX_WINDOW + 1, 0)
    # The largest window costs what the lane holds, not what the window could hold.
    assert sorted(whole_epoch(Lanes([5, 3], 2, MAX_WINDOW, 0), 1, 0)) == [(0, 4), (1, 0), (1, 1), (1, 2)]


WORDS = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_the_hash_is_that_of_python_integers(words):
    assert int(hash64(*words)) == slow_hash(*words)
    columns = [np.array([word, 0, -1], dtype=np.int64) for word in words]
    assert hash64(*columns).tolist() == [
        slow_hash(*words),
        slow_hash(*[0] * len(words)),
        slow_hash(*[-1] * len(words)),
    ]


@given(st.integers(0, 2**63 - 1), st.lists(WORDS, min_size=1, max_size=20), st.lists(WORDS, max_size=3))
def test_the_hash_has_the_bits_of_the_devices_hash(seed, first, rest):
    on_device = masking.hash64(seed, torch.tensor(first), *(torch.tensor(word) for word in rest))
    assert on_device.numpy().view(np.uint64).tolist() == hash64(seed, np.array(first), *rest).tolist()


def test_equal_keys_keep_their_order():
    keys = np.array([[5 << 24, 3 << 24, (5 << 24) + 7, 3 << 24]], dtype=np.uint64)
    assert permutation(keys).tolist() == [[1, 3, 0, 2]]
    # Of the 40 bits that count, the lowest one counts as well.
    assert permutation(np.array([3 << 24, 2 << 24], dtype=np.uint64)).tolist() == [1, 0]
    with pytest.raises(ValueError, match="too many to permute"):
        permutation(np.broadcast_to(np.uint64(0), (1, MAX_WINDOW + 1)))


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.integers(0, 2**63 - 1))
def test_uniform_numbers_belong_to_their_position(positions, seed):
    numbers = uniforms(seed, np.array(positions, dtype=np.int64), 5)
    assert numbers.shape == (len(positions), 5)
    assert ((numbers >= 0.0) & (numbers < 1.0)).all()
    for row, position in zip(numbers, positions, strict=True):
        assert row.tolist() == [(slow_hash(seed, 3, position, draw) >> 11) / 2**53 for draw in range(5)]


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=20))
def test_the_digest_is_a_sum_that_no_order_changes(triples):
    columns = np.array(triples, dtype=np.int64).reshape(-1, 3)
    value = digest(columns[:, 0], columns[:, 1], columns[:, 2])
    assert value.value == sum(slow_hash(*triple) for triple in triples) % WORD
    assert digest(*columns[::-1].T) == value


# Frozen: a change of any of these would silently change every run that is under way. They were computed by
# the slow reference above; the first is the first number of splitmix64 with seed 0.
def test_the_hash_is_frozen():
    assert [
        format(int(hash64(*words)), "016x") for words in [(0,), (1,), (-1,), (0, 1), (7, 2, 3, 5, 11)]
    ] == [
        "e220a8397b1dcdaf",
        "910a2dec89025cc1",
        "e4d971771b652c20",
        "08b4fda8c892b50e",
        "857b56215a77af42",
    ]


def test_the_order_is_frozen():
    order = Lanes([5, 0, 9, 2, 8], 3, 4, 2023)
    found = pairs(order.locate(np.arange(48, dtype=np.int64)))
    assert " ".join(f"{shard}.{ordinal}" for shard, ordinal in found) == (
        "2.0 2.4 4.3 2.2 2.6 4.0 0.0 2.5 4.2 2.1 2.3 4.1 0.2 3.1 4.4 0.3 "
        "3.0 4.5 0.4 2.8 4.7 0.1 2.7 4.6 2.0 3.1 4.0 2.1 3.0 4.1 2.2 2.3 "
        "4.3 0.0 2.4 4.2 0.2 2.6 4.5 0.4 2.8 4.7 0.3 2.5 4.4 0.1 2.7 4.6"
    )


def test_a_long_order_and_its_digest_are_frozen():
    order = Lanes([1000, 777, 0, 1234, 989], 8, 256, 1)
    positions = np.arange(3 * 4000, dtype=np.int64)
    found = order.locate(positions)
    listing = hashlib.sha256(np.stack(found).astype("<i8").tobytes()).hexdigest()[:16]
    assert (listing, digest(positions, *found).hex()) == (
        "2bc626bead22218c",
        "b6d245fb9a6c2466",
    )
