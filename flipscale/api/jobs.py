"""Jobs in Python: read one, and compute what it will do."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flipscale.config import Job
    from flipscale.planning.plan import Plan


def load_job(path: str | PathLike[str], *overrides: str) -> Job:
    """Read a job file, or the job of a run directory, strictly.

    Args:
        path: The YAML file, or a run directory.
        overrides: Changes such as `"seed=1"` or `"phases.0.samples=1B"`.

    Raises:
        UserError: If a key or a value is wrong; the message names the file and the key.
    """
    from flipscale.config import load_job as read

    file = Path(path)
    return read(file / "job.yaml" if file.is_dir() else file, overrides)


def plan(job: Job) -> Plan:
    """Compute what a job will do: steps, FLOPs, memory, time and GPU-hours. No GPU or data are needed.

    Args:
        job: The job; its `cluster` block says how many GPUs there are. They are counted as H100s.

    Raises:
        UserError: If the job cannot run.
    """
    from flipscale.planning.plan import plan_job

    return plan_job(job)
