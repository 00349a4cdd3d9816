"""The time of collectives: by hand and at the limits."""

from __future__ import annotations

from typing import cast

import pytest

from flipscale.errors import UserError
from flipscale.planning.gpus import GPUS
from flipscale.planning.network import (
    NETWORKS,
    PROTOCOLS,
    Kind,
    Network,
    bus_bandwidth,
    collective_seconds,
    find_network,
    ring_seconds,
)

GB = 1e9
H100 = NETWORKS["h100-80gb"]


def test_every_gpu_of_the_table_has_a_network() -> None:
    assert NETWORKS.keys() == GPUS.keys()


@pytest.mark.parametrize(
    ("kind", "ranks", "per_node", "seconds"),
    [  # 64 GB, by hand: bytes that cross each link / bandwidth, without the latency
        ("all_gather", 8, 8, 64 * 7 / 8 / 370),
        ("reduce_scatter", 8, 8, 64 * 7 / 8 / 370),
        ("all_reduce", 8, 8, 2 * 64 * 7 / 8 / 370),
        ("broadcast", 8, 8, 64 / 370),
        ("all_gather", 256, 8, 64 * 255 / 256 / 370),  # 8 cards of 50 GB/s carry more than NVLink does
        ("all_gather", 32, 1, 64 * 31 / 32 / 50),  # one card
        ("all_reduce", 32, 1, 2 * 64 * 31 / 32 / 50),
    ],
)
def test_large_collectives_take_bytes_over_bandwidth(
    kind: Kind, ranks: int, per_node: int, seconds: float
) -> None:
    assert collective_seconds(kind, int(64 * GB), ranks, per_node, H100) == pytest.approx(seconds, rel=0.01)


def test_small_collectives_take_the_latency_of_their_steps() -> None:
    """LL by hand: 6.6 us, 32 steps of 2.7 us between nodes, and 255 - 32 steps of 1.0 us inside them."""
    by_hand = 6.6e-6 + 32 * 2.7e-6 + 223 * 1.0e-6
    assert collective_seconds("all_gather", 1024, 256, 8, H100) == pytest.approx(by_hand, rel=0.01)


def test_small_all_reduce_takes_a_tree_and_a_large_one_a_ring() -> None:
    """A tree over 128 nodes has 2 x 7 steps between nodes, a ring over as many 2 x 128."""
    small = collective_seconds("all_reduce", 8192, 1024, 8, H100)
    assert small == pytest.approx(6.6e-6 + 14 * 1.0e-6 + 14 * 5.0e-6, rel=0.1)
    large = collective_seconds("all_reduce", int(64 * GB), 1024, 8, H100)
    assert large == pytest.approx(2 * 64 * 1023 / 1024 / 370, rel=0.06)


def test_ring_takes_as_long_without_a_tree_if_nccl_would_take_one() -> None:
    """A small all-reduce over 128 nodes of one GPU, by hand: 6.6 us and 2 x 127 steps of 2.7 us."""
    ring = ring_seconds("all_reduce", 1024, 128, 1, H100)
    assert ring == pytest.approx(6.6e-6 + 254 * 2.7e-6, rel=0.01)
    assert collective_seconds("all_reduce", 1024, 128, 1, H100) < ring / 5
    assert ring_seconds("all_gather", 1024, 128, 1, H100) == collective_seconds(
        "all_gather", 1024, 128, 1, H100
    )


def test_one_process_communicates_nothing() -> None:
    assert collective_seconds("all_reduce", int(GB), 1, 1, H100) == 0.0


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"])
def test_more_bytes_ranks_and_nodes_never_take_less_time(kind: Kind) -> None:
    sizes = [collective_seconds(kind, 2**power, 64, 8, H100) for power in range(34)]
    worlds = [collective_seconds(kind, 2**24, ranks, 8, H100) for ranks in (2, 4, 8, 16, 64, 256, 1024)]
    assert sizes == sorted(sizes)
    assert worlds == sorted(worlds)


def test_slow_fabric_bounds_what_spans_nodes_only() -> None:
    ethernet = find_network("h100-80gb", fabric_bandwidth=1.25 * GB, fabric_latency=30e-6)
    assert bus_bandwidth(16, 8, ethernet) == 10 * GB
    inside = collective_seconds("all_gather", 2**30, 8, 8, ethernet)
    assert inside == collective_seconds("all_gather", 2**30, 8, 8, H100)

    between = collective_seconds("all_gather", 64, 16, 8, ethernet)
    assert between == pytest.approx(collective_seconds("all_gather", 64, 16, 8, H100) + 2 * 30e-6, rel=0.01)


def test_two_gpus_on_two_nodes_need_one_step() -> None:
    network = Network(node_bandwidth=1.0, fabric_bandwidth=1e30)
    least = min(protocol.start + protocol.ring_fabric for protocol in PROTOCOLS)
    assert collective_seconds("all_gather", 8, 2, 1, network) == pytest.approx(least)


def test_unknown_gpu_and_collective_are_named() -> None:
    with pytest.raises(UserError, match="the network of GPU 'tpu' is unknown; take one of a100-40gb"):
        find_network("tpu")
    with pytest.raises(ValueError, match="no such collective: all_to_all"):
        collective_seconds(cast("Kind", "all_to_all"), 1, 2, 2, H100)
