"""What a job asks of a cluster: nodes, processes, GPUs, cores, memory and time."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.config import Job, Site
from flipscale.errors import UserError

# Slurm sends the warning up to a minute early, and a segment that is warned at its start trains nothing.
_SIGNAL_RASTER = 60


@dataclass(frozen=True)
class Allocation:
    nodes: int
    processes_per_node: int
    gpus_per_node: int
    cpus_per_process: int | None  # None: what the cluster gives by default
    memory_per_node: int | None  # bytes; None as above
    time_limit: int  # seconds of one segment, whole minutes

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


def allocation(job: Job, site: Site) -> Allocation:
    """Return what `job` asks of `site`.

    A job that asks for more time than the site gives runs in segments of what it gives. Raises UserError for
    a job that wants more than a node of the site has, and for a time limit too short to train in.
    """
    gpus = job.cluster.gpus_per_node if site.gpus_per_node is None else site.gpus_per_node
    if gpus:
        gpus = job.cluster.gpus_per_node
        if site.gpus_per_node is not None and gpus > site.gpus_per_node:
            raise UserError(
                f"cluster.gpus_per_node is {gpus}, but a node of the site {site.name} has "
                f"{site.gpus_per_node}; set cluster.gpus_per_node to at most {site.gpus_per_node}"
            )
    processes = site.processes_per_node or gpus or 1
    cpus = site.cpus_per_process
    if site.cores_per_node is not None:
        cpus = cpus or max(1, site.cores_per_node // processes)
        if cpus * processes > site.cores_per_node:
            raise UserError(
                f"{processes} processes of {cpus} cores need more than the {site.cores_per_node} cores of a "
                f"node of the site {site.name}; lower cpus_per_process or processes_per_node there"
            )
    return Allocation(
        nodes=job.cluster.nodes,
        processes_per_node=processes,
        gpus_per_node=gpus,
        cpus_per_process=cpus,
        memory_per_node=site.memory_per_node,
        time_limit=_time_limit(job, site),
    )


def _time_limit(job: Job, site: Site) -> int:
    seconds = min(job.cluster.timeout, site.time_limit or job.cluster.timeout)
    least = site.stop_before + _SIGNAL_RASTER
    if seconds < least:
        raise UserError(
            f"a time limit of {seconds} s leaves no time to train: the site {site.name} tells a job to stop "
            f"{site.stop_before} s before its end, and Slurm does so up to {_SIGNAL_RASTER} s early; give "
            f"cluster.timeout and the site's time_limit at least {-(-least // 60)} min, or lower stop_before"
        )
    return seconds // 60 * 60
