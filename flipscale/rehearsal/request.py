"""What to rehearse: a job, a kind and number of GPUs, and the rank to be."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.budget import Budget, check_world_size
from flipscale.config import Job
from flipscale.errors import UserError
from flipscale.planning.gpus import Gpu, find_gpu
from flipscale.sharding.limits import check_sharding


@dataclass(frozen=True)
class Request:
    """What to rehearse."""

    job: Job
    gpu: Gpu
    gpus: int
    rank: int

    @property
    def ranks_per_node(self) -> int:
        """Processes of a node."""
        return min(self.gpus, self.job.cluster.gpus_per_node)


def make_request(job: Job, gpu: str, gpus: int | None = None, rank: int = 0) -> Request:
    """Check the options of a rehearsal, and that the job can run on so many GPUs.

    Args:
        job: The job.
        gpu: The name of the GPU.
        gpus: The number of GPUs; None for the job's own.
        rank: The rank to be.

    Raises:
        UserError: If the GPU is unknown, the job cannot run on so many GPUs, or there is no such rank.
    """
    if gpus is not None and gpus < 1:
        raise UserError(f"--gpus {gpus} is not a number of GPUs; give 1 or more")
    size = job.cluster.gpus if gpus is None else gpus
    if not 0 <= rank < size:
        raise UserError(f"--rank {rank} does not exist; the ranks of {size} GPUs are 0 to {size - 1}")

    Budget.of(job.phases, job.data.lanes)
    check_world_size(size, job.data.lanes)
    check_sharding(job.sharding, size, "cuda")
    return Request(job, find_gpu(gpu), size, rank)
