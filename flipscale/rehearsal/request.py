"""What to rehearse: a job, its GPUs, and the rank to be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from flipscale.budget import Budget, check_world_size
from flipscale.config import Job
from flipscale.errors import UserError
from flipscale.planning.throughput import Speed
from flipscale.sharding.limits import check_sharding


@dataclass(frozen=True)
class Request:
    """What to rehearse."""

    job: Job
    on: Speed
    """The GPUs, their number, and the network."""
    rank: int
    """The rank to be."""

    @property
    def ranks_per_node(self) -> int:
        """Processes of a node."""
        return min(self.on.gpus, self.on.gpus_per_node)


def digest_of_step(job: Job) -> str:
    """Return a digest of what a job's steps depend on, which are neither its data nor its schedule.

    Args:
        job: The job.
    """
    parts = {"model", "phases", "optimizer", "loss", "sharding", "deterministic"}
    # Keys that are younger than the first rehearsals count only if they are set: their digests stay the same.
    unset = {
        number: {"schedule", "cooldown", *(() if phase.micro_batch else ("micro_batch",))}
        for number, phase in enumerate(job.phases)
    }
    text = job.model_dump_json(include=parts, exclude={"model": {"weights"}, "phases": unset})
    return hashlib.sha256(text.encode()).hexdigest()


def make_request(job: Job, on: Speed, rank: int = 0) -> Request:
    """Check that a job can run on so many GPUs, and that there is the rank.

    Args:
        job: The job.
        on: The GPUs, their number, and the network.
        rank: The rank to be.

    Raises:
        UserError: If the job cannot run on so many GPUs, or the rank does not exist.
    """
    if not 0 <= rank < on.gpus:
        raise UserError(f"--rank {rank} does not exist; the ranks of {on.gpus} GPUs are 0 to {on.gpus - 1}")

    Budget.of(job.phases, job.data.lanes)
    check_world_size(on.gpus, job.data.lanes)
    check_sharding(job.sharding, on.gpus, "cuda")
    return Request(job, on, rank)
