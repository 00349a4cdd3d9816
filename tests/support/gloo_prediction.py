"""What the network model of a plan predicts for gloo on an emulated network.

The model is that of NCCL. gloo differs from NCCL in three ways:

- gloo all-reduces along a ring only (gloo/allreduce.cc).
- torch reduces and scatters over gloo by all-reducing the whole tensor.
- A sender waits until the receiver has said that it is ready (gloo/transport/tcp/pair.cc), which it says when
  the step begins. The latency of a step is a round trip, twice the delay.
"""

from __future__ import annotations

from typing import Any

from support.emulated_network import Link
from support.measured_step import PAIRS, SPEC, job_of

from flipscale.planning.network import Kind, Network, ring_seconds
from flipscale.planning.traffic import Layout, loss_traffic, weight_traffic, weights_of


def run_by_gloo(kind: Kind) -> Kind:
    """Return the collective that runs when a kind is asked for."""
    return "all_reduce" if kind == "reduce_scatter" else kind


def predicted_seconds(kind: Kind, size: int, nodes: int, link: Link) -> float:
    """Return the seconds of a collective of one process per node.

    Args:
        kind: What is asked for.
        size: Bytes of the whole tensor.
        nodes: The number of nodes.
        link: What connects them.
    """
    network = Network(link.rate, link.rate, fabric_latency=2 * link.delay)
    return ring_seconds(run_by_gloo(kind), size, nodes, 1, network)


def predicted_bytes(kind: Kind, size: int, nodes: int) -> float:
    """Return the bytes that a process sends in a ring, without headers."""
    rounds = 2 if run_by_gloo(kind) == "all_reduce" else 1
    return rounds * (nodes - 1) / nodes * size


def predicted_communication(sharding: dict[str, Any], nodes: int, link: Link) -> float:
    """Return the seconds of all collectives in a step of `support.measured_step`, one after the other."""
    job = job_of(nodes, sharding)
    layout = Layout(nodes, 1)
    sent = (
        *weight_traffic(job.sharding, weights_of(SPEC), layout),
        *loss_traffic(PAIRS, SPEC.embed_dim, job.loss.kind, layout),
    )
    return sum(one.count * predicted_seconds(one.kind, one.size, one.ranks, link) for one in sent)
