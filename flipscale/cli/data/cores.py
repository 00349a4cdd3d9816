"""How many processes the commands on data start."""

from __future__ import annotations

import os

from flipscale.errors import UserError


def worker_count(workers: int | None = None) -> int:
    """Return the value of --workers, or the number of cores that this process may use.

    Raises:
        UserError: If the value is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; give at least 1")

    return len(os.sched_getaffinity(0)) if workers is None else workers
