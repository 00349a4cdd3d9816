"""The least rate of the all-reduce between GPUs, by the links that they should have."""

from __future__ import annotations

import os
from collections.abc import Mapping

from flipscale.errors import UserError
from flipscale.planning.network import (
    FABRIC_VARIABLE,
    NODE_VARIABLE,
    Network,
    collective_seconds,
    find_network,
)

# The names that CUDA gives to the GPUs of systems with NVLink, and those of `planning.network.NETWORKS`. The
# PCIe cards of the same kinds have other names.
_GPUS = {
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100-80gb",
    "NVIDIA H200": "h200-141gb",
}
_SHARE = 0.1
"""The share of the rate by NCCL's model that a node has to reach.

InfiniBand reaches most of that rate. A node of 8 GPUs that has fallen back to TCP over a card of 100 Gb/s
sends at most 12.5 GB/s, of the 200 (A100) or 370 (H100) that its cards or NVLink carry.
"""
_LEAST = 1e9
"""Bytes/s for GPUs whose links are not known."""


def least_all_reduce(gpu: str, size: int, ranks: int, ranks_per_node: int) -> float:
    """Return the bytes/s that each process of a working node exceeds in a ring: bytes x 2 (n - 1) / n.

    Args:
        gpu: The name of the GPU, as CUDA gives it.
        size: Bytes of the tensor.
        ranks: Processes of the run.
        ranks_per_node: Processes of a node.

    Raises:
        UserError: If a variable with a bandwidth of the site is not a positive number.
    """
    network = _network(gpu, os.environ)
    if network is None:
        return _LEAST

    seconds = collective_seconds("all_reduce", size, ranks, ranks_per_node, network)
    return _SHARE * size * 2 * (ranks - 1) / ranks / seconds


def _network(gpu: str, env: Mapping[str, str]) -> Network | None:
    node, fabric = _bandwidth(NODE_VARIABLE, env), _bandwidth(FABRIC_VARIABLE, env)
    if gpu in _GPUS:
        return find_network(_GPUS[gpu], node_bandwidth=node, fabric_bandwidth=fabric)
    if node is None or fabric is None:
        return None
    return Network(node, fabric)


def _bandwidth(variable: str, env: Mapping[str, str]) -> float | None:
    text = env.get(variable)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"{variable} is {text!r}; give a positive number of bytes per second")
    return value
