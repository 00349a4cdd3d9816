"""A job that is about to be submitted."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.config import Job, Site
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True)
class Candidate:
    """A job that is about to be submitted.

    Attributes:
        run: The run directory, which need not exist.
        job: The resolved job file.
        site: The cluster.
        allocation: The resources that the job requests from the cluster.
        from_zero: Whether a run whose checkpoints are lost may begin at zero.
    """

    run: RunDirectory
    job: Job
    site: Site
    allocation: Allocation
    from_zero: bool = False
