"""The time of a collective over NVLink and the network between nodes: latency plus bytes over bandwidth.

The model is the one that NCCL decides with (NCCL 2.20, src/graph/tuning.cc). For every algorithm (ring, tree)
and every protocol (LL, LL128, Simple) it predicts latency + bytes / bandwidth, and NCCL runs the fastest.
Latencies are per step and counted along the ring or up and down the tree; bandwidths are shares of what the
links carry. A ring crosses the border of each node once per channel, so that a collective of all GPUs uses
the network cards of all of them. A group with one GPU per node has only the card of that GPU.

Left out: NVLink SHARP and NVLS trees (H100 all-reduces, faster), PAT (all-gathers of one GPU per node, lower
latency), the switches' SHARP, congestion, and the stragglers that every collective waits for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from flipscale.errors import UserError

NODE_VARIABLE: Final = "FLIPSCALE_NODE_BANDWIDTH"
"""The environment variable by which processes know the `node_bandwidth` of their site, in bytes/s."""
FABRIC_VARIABLE: Final = "FLIPSCALE_FABRIC_BANDWIDTH"
"""The environment variable by which processes know the `fabric_bandwidth` of their site, in bytes/s."""

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"]


@dataclass(frozen=True)
class Protocol:
    """A way in which NCCL moves data: the latency of its steps against the share of a link that it fills."""

    name: str
    start: float
    """Seconds before the first byte."""
    ring_node: float
    """Seconds of a step of a ring inside a node."""
    ring_fabric: float
    """Seconds of a step of a ring between two nodes."""
    tree_node: float
    """Seconds of a step of a tree inside a node."""
    tree_fabric: float
    """Seconds of a step of a tree between two nodes."""
    ring_share: float
    """The share of the links' bandwidth that a ring fills."""
    tree_share: float
    """The share of the links' bandwidth that a tree fills."""


# The tables baseLat, hwLat and the factors of busBw in NCCL 2.20, src/graph/tuning.cc. LL sends a flag with
# every 4 bytes, LL128 one with every 120. Trees reach 0.92 of a ring.
PROTOCOLS = (
    Protocol("LL", 6.6e-6, 1.0e-6, 2.7e-6, 1.0e-6, 5.0e-6, 0.25, 0.92 / 3.8),
    Protocol("LL128", 14e-6, 1.9e-6, 4.0e-6, 1.25e-6, 8.5e-6, 0.92, 0.92 * 120 / 128),
    Protocol("Simple", 8.4e-6, 3.4e-6, 14e-6, 28e-6, 28e-6, 1.0, 0.92),
)


@dataclass(frozen=True)
class Network:
    """What connects the GPUs of a job, as bytes per second in one direction and per GPU."""

    node_bandwidth: float
    """Bytes/s between the GPUs of a node, as a collective reaches them."""
    fabric_bandwidth: float
    """Bytes/s between nodes: the network cards of a node, divided by its GPUs."""
    fabric_latency: float = 0.0
    """Seconds that a step between nodes takes longer than over InfiniBand."""


# NVLink: NCCL counts 20.0 GB/s per link of an A100 (12 links) and 20.6 per link of an H100 (18 links), of the
# sheets' 25 (src/graph/topo.h). Its own limit for an A100 is 235 (tuning.cc). Network cards, by the guides of
# the systems: one of 200 Gb/s per A100 (DGX A100: 8 HDR), one of 400 Gb/s per H100 and H200 (DGX H100, DGX
# H200: 8 NDR), one of 200 Gb/s per GH200 (JUPITER: 4 NDR200 per node of 4).
NETWORKS = {
    "a100-40gb": Network(235e9, 25e9),
    "a100-80gb": Network(235e9, 25e9),
    "h100-80gb": Network(370e9, 50e9),
    "h200-141gb": Network(370e9, 50e9),
    "gh200-96gb": Network(370e9, 25e9),
}


def find_network(
    gpu: str,
    *,
    node_bandwidth: float | None = None,
    fabric_bandwidth: float | None = None,
    fabric_latency: float | None = None,
) -> Network:
    """Return the network of a kind of GPU, with a site's own figures in place of the defaults.

    Args:
        gpu: A name of `flipscale plan --gpu`.
        node_bandwidth: Bytes/s per GPU inside a node.
        fabric_bandwidth: Bytes/s per GPU between nodes.
        fabric_latency: Seconds added to each step between nodes.

    Raises:
        UserError: If the table has no such GPU.
    """
    network = NETWORKS.get(gpu.lower())
    if network is None:
        raise UserError(f"the network of GPU {gpu!r} is unknown; take one of {', '.join(NETWORKS)}")

    given = {
        "node_bandwidth": node_bandwidth,
        "fabric_bandwidth": fabric_bandwidth,
        "fabric_latency": fabric_latency,
    }
    return replace(network, **{name: value for name, value in given.items() if value is not None})


def collective_seconds(kind: Kind, size: int, ranks: int, ranks_per_node: int, network: Network) -> float:
    """Return the time of one collective that has the network to itself.

    Groups that run at the same time, such as the copies of HSDP, share the cards of a node evenly: a group
    gets the cards of its own GPUs.

    Args:
        kind: What NCCL is asked for.
        size: Bytes of the whole tensor: the result of an all-gather, the input of a reduce-scatter, the
            buffer of the others.
        ranks: Processes of the group.
        ranks_per_node: Processes of the group that share a node; divides `ranks` unless all fit one node.
        network: The links.

    Returns:
        Seconds; 0.0 for a group of one process.

    Raises:
        ValueError: If the kind is unknown or a number is out of range.
    """
    if kind not in get_args(Kind) or size < 0 or ranks < 1 or ranks_per_node < 1:
        raise ValueError(
            f"no such collective: {kind}, {size} bytes, {ranks} ranks, {ranks_per_node} per node"
        )
    if ranks == 1:
        return 0.0

    ring = ring_seconds(kind, size, ranks, ranks_per_node, network)
    if kind != "all_reduce":
        return ring
    return min(ring, *(_tree_seconds(size, ranks, ranks_per_node, network, p) for p in PROTOCOLS))


def ring_seconds(kind: Kind, size: int, ranks: int, ranks_per_node: int, network: Network) -> float:
    """Return the time of one collective along a ring, also if NCCL would all-reduce along a tree.

    Args:
        kind: What is asked for.
        size: Bytes of the whole tensor.
        ranks: Processes of the group, at least 2.
        ranks_per_node: Processes of the group that share a node.
        network: The links.
    """
    return min(_ring_seconds(kind, size, ranks, ranks_per_node, network, p) for p in PROTOCOLS)


def bus_bandwidth(ranks: int, ranks_per_node: int, network: Network) -> float:
    """Return the bytes/s that all rings of a group carry together over each of their links.

    Args:
        ranks: Processes of the group.
        ranks_per_node: Processes of the group that share a node.
        network: The links.
    """
    if ranks <= ranks_per_node:
        return network.node_bandwidth
    cards = ranks_per_node * network.fabric_bandwidth
    return cards if ranks_per_node == 1 else min(network.node_bandwidth, cards)


def _ring_seconds(
    kind: Kind, size: int, ranks: int, ranks_per_node: int, network: Network, protocol: Protocol
) -> float:
    """Return the time with one protocol.

    Every rank passes its part on, ranks - 1 times, and twice as often to all-reduce.
    """
    nodes = -(-ranks // ranks_per_node)
    rounds = 2 if kind == "all_reduce" else 1
    steps = rounds * (ranks - 1)
    between = min(steps, rounds * nodes) if nodes > 1 else 0

    latency = protocol.start + (steps - between) * protocol.ring_node
    latency += between * (protocol.ring_fabric + network.fabric_latency)

    # A broadcast or reduction sends the whole tensor along the ring, in pieces that follow each other.
    moved = size if kind in ("broadcast", "reduce") else size * steps / ranks
    return latency + moved / (protocol.ring_share * bus_bandwidth(ranks, ranks_per_node, network))


def _tree_seconds(size: int, ranks: int, ranks_per_node: int, network: Network, protocol: Protocol) -> float:
    """Return the time of an all-reduce by two trees over the nodes, with a chain inside each node."""
    nodes = -(-ranks // ranks_per_node)
    inside = min(ranks, ranks_per_node) - 1

    latency = protocol.start + 2 * inside * protocol.tree_node
    latency += 2 * math.log2(nodes) * (protocol.tree_fabric + network.fabric_latency)
    return latency + 2 * size / (protocol.tree_share * bus_bandwidth(ranks, ranks_per_node, network))
