"""The resources that a job requests from a cluster: nodes, processes, GPUs, cores, memory and time."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.config import Job, Site
from flipscale.errors import UserError

# Slurm sends the warning up to a minute early, and a segment that is warned at its start trains nothing.
_SIGNAL_RASTER = 60


@dataclass(frozen=True)
class Allocation:
    """The resources of one segment of a job.

    Attributes:
        nodes: Number of nodes.
        processes_per_node: Training processes on each node.
        gpus_per_node: GPUs on each node; 0 on a cluster without GPUs.
        cpus_per_process: Cores of each process; None for the cluster's default.
        memory_per_node: Host memory in bytes; None for the cluster's default.
        time_limit: Seconds that one segment may take; whole minutes.
    """

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    cpus_per_process: int | None
    memory_per_node: int | None
    time_limit: int

    @property
    def world_size(self) -> int:
        """The number of training processes on all nodes."""
        return self.nodes * self.processes_per_node


def resolve_allocation(job: Job, site: Site) -> Allocation:
    """Return the resources that `job` requests from `site`.

    A job with a longer timeout than the site's time limit runs in segments of the site's limit.

    Raises:
        UserError: If the job needs more than one node of the site has, or if the time limit is too short to
            train anything.
    """
    gpus = _gpus_per_node(job, site)
    processes = site.processes_per_node or gpus or 1

    return Allocation(
        nodes=job.cluster.nodes,
        processes_per_node=processes,
        gpus_per_node=gpus,
        cpus_per_process=_cpus_per_process(site, processes),
        memory_per_node=site.memory_per_node,
        time_limit=_time_limit(job, site),
    )


def _gpus_per_node(job: Job, site: Site) -> int:
    if site.gpus_per_node == 0:
        return 0

    gpus = job.cluster.gpus_per_node
    if site.gpus_per_node is not None and gpus > site.gpus_per_node:
        raise UserError(
            f"cluster.gpus_per_node is {gpus}, but a node of the site {site.name} has "
            f"{site.gpus_per_node}; set cluster.gpus_per_node to at most {site.gpus_per_node}"
        )
    return gpus


def _cpus_per_process(site: Site, processes: int) -> int | None:
    if site.cores_per_node is None:
        return site.cpus_per_process

    cpus = site.cpus_per_process or max(1, site.cores_per_node // processes)
    if cpus * processes > site.cores_per_node:
        raise UserError(
            f"{processes} processes of {cpus} cores need more than the {site.cores_per_node} cores of a "
            f"node of the site {site.name}; lower cpus_per_process or processes_per_node there"
        )
    return cpus


def _time_limit(job: Job, site: Site) -> int:
    seconds = min(job.cluster.timeout, site.time_limit or job.cluster.timeout)

    least = site.stop_before + _SIGNAL_RASTER
    if seconds < least:
        raise UserError(
            f"a time limit of {seconds} s leaves no time to train: the site {site.name} asks a job to stop "
            f"{site.stop_before} s before its end, and Slurm does so up to {_SIGNAL_RASTER} s early; give "
            f"cluster.timeout and the site's time_limit at least {-(-least // 60)} min, or lower stop_before"
        )
    return seconds // 60 * 60
