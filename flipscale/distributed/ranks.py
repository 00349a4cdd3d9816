"""The processes that share one global batch, and the collectives a loss needs from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed both and warns at every call of the old name; torch 2.8 knows only the old one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Ranks:
    """`size` processes of which this one is number `index`; every method must be called by all of them.

    With one process each method returns at once and copies nothing: a loss needs no second code path.
    """

    size: int
    index: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> Ranks:
        """The ranks of `group`; None means the default group, or this process alone where there is none."""
        if not dist.is_available() or not dist.is_initialized():
            return cls(size=1, index=0)
        return cls(size=dist.get_world_size(group), index=dist.get_rank(group), group=group)

    def gather(self, values: Tensor) -> Tensor:
        """`values` (...) of every rank, stacked to (size, ...). Not differentiable."""
        if self.size == 1:
            return values.unsqueeze(0)
        stacked = values.new_empty(self.size, *values.shape)
        _all_gather(stacked.flatten(0, 1), values.contiguous(), group=self.group)
        return stacked

    def scatter_sum(self, values: Tensor) -> Tensor:
        """Sum `values` (size, ...) over the ranks and return this rank's own part (...)."""
        if self.size == 1:
            return values[0]
        own = values.new_empty(values.shape[1:])
        _reduce_scatter(own, values.flatten(0, 1), group=self.group)
        return own

    def sum_(self, values: Tensor) -> Tensor:
        """Sum `values` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Largest of `values` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values
