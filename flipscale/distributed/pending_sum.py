"""A sum over all processes that is under way while this process continues."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


class PendingSum:
    """A sum of int64 numbers over all processes, which a thread of gloo computes.

    The object keeps the memory that the thread writes to.

    Args:
        total: The numbers of this process, int64 (n,), which the sum replaces.
        work: The collective; None if there is one process, whose numbers are the sum.
    """

    def __init__(self, total: Tensor, work: dist.Work | None) -> None:
        self._total = total
        self._work = work

    def wait(self) -> list[int]:
        """Wait until all processes have added their numbers, and return the sum, modulo 2**64.

        Raises:
            RuntimeError: If a process is gone.
        """
        if self._work is not None:
            self._work.wait()
        return self._total.tolist()
