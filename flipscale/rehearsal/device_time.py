"""A roofline of one GPU: the time that a kernel needs by its operations and its bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flipscale.rehearsal.operators import Cost

PRODUCTS = 0.70
"""The share of the tensor cores' peak that large matrix products reach. An assumption, as all constants here:
replace it by a measurement of your GPU if you have one."""
EXACT_PRODUCTS = 0.75
"""The share of the fp32 peak that fp32 products reach."""
BANDWIDTH = 0.85
"""The share of the memory's bandwidth that other kernels reach."""
ATTENTION = {"forward": 0.35, "backward": 0.25}
"""The share of the tensor cores' peak that flash attention reaches, on whole tiles."""
SHORTEST_KERNEL = 2.5e-6
"""Seconds that no kernel stays below."""
_TILE = (128, 64)
"""Queries and keys that flash attention works on at a time. Work on a part of a tile costs a whole one."""
_WIDTH = 32
"""The channels of a head are rounded up to a multiple of this."""


@dataclass(frozen=True)
class DeviceTime:
    """The time of kernels on one kind of GPU."""

    peak_flops: float
    """FLOP/s of 16-bit products."""
    exact_flops: float
    """FLOP/s of fp32 products."""
    bandwidth: float
    """Bytes per second of device memory."""

    def seconds(self, cost: Cost, inputs: Sequence[Tensor]) -> float:
        """Return the seconds of one kernel.

        Args:
            cost: The operator's cost.
            inputs: Its tensors; attention's tiles depend on their shapes.
        """
        moving = cost.bytes / (BANDWIDTH * self.bandwidth)
        if cost.group == "optimizer":
            return moving  # one kernel works on many tensors
        return max(SHORTEST_KERNEL, moving, self._computing(cost, inputs))

    def _computing(self, cost: Cost, inputs: Sequence[Tensor]) -> float:
        if not cost.flops:
            return 0.0
        if cost.exact:
            return cost.flops / (EXACT_PRODUCTS * self.exact_flops)
        if cost.group != "attention":
            return cost.flops / (PRODUCTS * self.peak_flops)

        backward = len(inputs) > 3  # query, key and value, and in the backward their gradients' inputs
        share = ATTENTION["backward" if backward else "forward"]
        return cost.flops * _padding(inputs[-1 if not backward else 1]) / (share * self.peak_flops)


def _padding(query: Tensor) -> float:
    """Return the work of attention on whole tiles, as a multiple of what (B, heads, tokens, width) need."""
    tokens, width = query.shape[-2:]
    rows, columns = (math.ceil(tokens / tile) * tile for tile in _TILE)
    return rows * columns / tokens**2 * math.ceil(width / _WIDTH) * _WIDTH / width
