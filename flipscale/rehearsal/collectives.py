"""The collectives of a step: their kind, their size, and the processes that take part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

_dist: Any = dist

_KINDS = {
    "allgather": "all_gather",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "broadcast": "broadcast",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "reduce": "reduce",
    "barrier": "barrier",
}
"""The beginnings of the operators' names, the longer ones first where one begins as another does."""


@dataclass(frozen=True)
class Collective:
    """One kind of collective in a step."""

    kind: str
    """all_gather, reduce_scatter, all_reduce, broadcast, reduce, all_to_all or barrier."""
    dtype: str
    """The dtype of the data, such as bfloat16."""
    bytes: int
    """Bytes of one call: the whole gathered, reduced or scattered buffer of one process."""
    ranks: int
    """Processes that take part."""
    stride: int
    """Distance of neighbours in the group: 1 for consecutive ranks, as of one node."""
    blocking: bool
    """Whether nothing of the step runs meanwhile: in the loss, and after forward and backward."""


class CollectiveCounts:
    """Counts the collectives of a step by what they have in common."""

    def __init__(self) -> None:
        self.counts: Counter[Collective] = Counter()

    def add(self, operator: Any, args: Sequence[Any], tensors: Sequence[Tensor], *, blocking: bool) -> None:
        """Count one call.

        Args:
            operator: The operator of torch.distributed.
            args: Its arguments.
            tensors: The tensors among its arguments and results.
            blocking: Whether the step waits for it at once.
        """
        name = operator._schema.name.split("::")[1].lstrip("_")
        kind = next((kind for start, kind in _KINDS.items() if name.startswith(start)), None)
        if kind is None:
            return  # wait_tensor and its like move nothing

        largest = max(tensors, key=lambda tensor: tensor.numel() * tensor.element_size(), default=None)
        size = 0 if largest is None else largest.numel() * largest.element_size()
        dtype = "" if largest is None else str(largest.dtype).removeprefix("torch.")
        ranks = _ranks_of(args)
        stride = ranks[1] - ranks[0] if len(ranks) > 1 else 1
        self.counts[Collective(kind, dtype, size, len(ranks), stride, blocking)] += 1


def _ranks_of(args: Sequence[Any]) -> list[int]:
    """Return the global ranks of the group that an operator's arguments name."""
    for value in args:
        if isinstance(value, str):  # functional collectives name their group
            group = _dist.distributed_c10d._resolve_process_group(value)
            return _dist.get_process_group_ranks(group)
        if type(value).__name__ == "ScriptObject":
            try:
                group = _dist.ProcessGroup.unbox(value)
            except (RuntimeError, TypeError):
                continue  # the kind of reduction is such an object, too
            return _dist.get_process_group_ranks(group)
    return list(range(_dist.get_world_size()))
