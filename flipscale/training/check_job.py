"""The checks of a job that need no data and no other process."""

from __future__ import annotations

import torch

from flipscale.budget import Budget, check_world_size
from flipscale.config import Job
from flipscale.models.of_job import phase_specs, preset_spec
from flipscale.sharding.compilation import check_compiler
from flipscale.sharding.limits import check_sharding
from flipscale.sharding.optimizer import check_optimizer
from flipscale.training.determinism import use_deterministic_algorithms


def prepare_job(job: Job, world_size: int) -> Budget:
    """Set this process to the arithmetic that a job asks for, and check the job; see `check_job`."""
    if job.deterministic:
        use_deterministic_algorithms()  # before the checks, which may be the first to use CUDA
    return check_job(job, world_size)


def check_job(job: Job, world_size: int) -> Budget:
    """Check a job before anything is read or started, and return its budget.

    Args:
        job: The job.
        world_size: The number of processes that train it.

    Raises:
        UserError: If the preset or the optimizer does not exist, if a size of an image, a patch or the
            decoder does not fit, if the job cannot be trained by this number of processes on this kind of
            device, or if it needs a compiler and there is none.
    """
    phase_specs(preset_spec(job), job)
    check_world_size(world_size, job.data.lanes)
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    check_sharding(job.sharding, world_size, device_type)
    if job.sharding.compile:
        check_compiler(device_type)
    check_optimizer(job.optimizer, job.sharding)

    return Budget.of(job.phases, job.data.lanes)
