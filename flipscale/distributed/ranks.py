"""The processes that share one global batch, and the collectives that a loss needs from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed
from torch import Tensor

_dist: Any = torch.distributed  # the signatures of its collectives are partially unknown
# torch 2.13 renamed both and warns at every call of the old name; torch 2.8 knows only the old one.
_all_gather: Any = getattr(_dist, "all_gather_single", None) or _dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(_dist, "reduce_scatter_single", None) or _dist.reduce_scatter_tensor


class Pending(NamedTuple):
    """The result of a collective, which may still run."""

    result: Tensor
    work: torch.distributed.Work | None = None
    """The collective; None if the result is complete."""

    def wait(self) -> Tensor:
        """Return the complete result.

        On a GPU the host does not wait: what it queues on the current stream from now on does.
        """
        if self.work is not None:
            self.work.wait()
        return self.result


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, of which this one has the number `index`.

    All processes must call a method together. With one process each method returns at once and copies
    nothing, so that a loss needs no second code path.
    """

    size: int
    """Processes of the group."""
    index: int
    """Number of this process."""
    group: torch.distributed.ProcessGroup | None = None
    """The group of torch; None for the default group."""

    @classmethod
    def of(cls, group: torch.distributed.ProcessGroup | None = None) -> Ranks:
        """Return the ranks of a group.

        Args:
            group: None means the default group, or only this process if that is missing.
        """
        if not _dist.is_available() or not _dist.is_initialized():
            return cls(size=1, index=0)
        return cls(size=_dist.get_world_size(group), index=_dist.get_rank(group), group=group)

    def gather(self, values: Tensor) -> Tensor:
        """Return `values` (...) of every rank, stacked to (size, ...); not differentiable."""
        return self.start_gather(values).wait()

    def start_gather(self, values: Tensor) -> Pending:
        """Start to gather `values`, which must not change before the result is complete; see `gather`."""
        if self.size == 1:
            return Pending(values.unsqueeze(0))

        stacked = values.new_empty(self.size, *values.shape)
        work = _all_gather(stacked.flatten(0, 1), values.contiguous(), group=self.group, async_op=True)
        return Pending(stacked, work)

    def start_scatter_sum(self, values: Tensor) -> Pending:
        """Start to sum `values` (size, ...) over the ranks; the result is this rank's own part (...).

        The values must not change before the result is complete.
        """
        if self.size == 1:
            return Pending(values[0])

        own = values.new_empty(values.shape[1:])
        return Pending(own, _reduce_scatter(own, values.flatten(0, 1), group=self.group, async_op=True))

    def sum_(self, values: Tensor) -> Tensor:
        """Sum `values` over the ranks in place, and return them."""
        if self.size > 1:
            _dist.all_reduce(values, _dist.ReduceOp.SUM, group=self.group)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Take the largest of `values` over the ranks in place, and return them."""
        if self.size > 1:
            _dist.all_reduce(values, _dist.ReduceOp.MAX, group=self.group)
        return values
