"""The checks of a job's model: its starting weights, and whether it fits the GPUs."""

from __future__ import annotations

from pathlib import Path

from flipscale.errors import UserError
from flipscale.formatting import format_gib
from flipscale.orchestration.checks.candidate import Candidate
from flipscale.orchestration.checks.finding import CheckWarning
from flipscale.planning.fit import advise, fits
from flipscale.planning.gpus import find_gpu
from flipscale.planning.memory import estimate_memory
from flipscale.planning.plan import model_shape
from flipscale.runs.manifest import committed_samples


def check_weights(candidate: Candidate) -> str:
    """Check that `model.weights` names something that a model can be loaded from."""
    weights = candidate.job.model.weights
    if weights is None:
        return "initial ones"
    if committed_samples(candidate.run):
        return f"{weights}, read when the run began"

    from flipscale.interop.load_model import is_model  # slow to import, and few jobs have weights

    if not is_model(Path(weights)):
        raise UserError(
            f"model.weights {weights} is neither a run, nor a checkpoint, nor an OpenCLIP directory; "
            "correct the path"
        )
    return weights


def check_memory(candidate: Candidate) -> str:
    """Compare the estimated memory of a process with the memory of the site's GPU."""
    job = candidate.job
    site = candidate.site
    world_size = candidate.allocation.world_size

    available = site.gpu_memory
    if site.gpu and available is None:
        available = find_gpu(site.gpu).memory

    spec = model_shape(job)
    needed = max(phase.total for phase in estimate_memory(job, spec, world_size))
    text = f"{format_gib(needed)} per process by the estimate of `flipscale plan`"
    if available is None or not candidate.allocation.gpus_per_node:
        return f"{text}; set gpu or gpu_memory in the site file to have it compared"
    if fits(needed, available):
        return f"{text}, of {format_gib(available, 0)}"

    advice = advise(job, spec, world_size, available)
    fix = f"try {' '.join(advice)}" if advice else "take more or larger GPUs"
    raise CheckWarning(f"{text}, which does not fit a GPU of {format_gib(available, 0)}; {fix}")
