"""The machine that a job is planned for: its GPUs, their speed, their nodes, and what connects them."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.planning.gpus import DEFAULT_GPU, Gpu, find_gpu
from flipscale.planning.network import Network, find_network

IMAGES_PER_CORE = 450.0
"""The images per second that one core of the loader reads: JPEGs of 512 pixels and 85 kB.

The benchmark in docs/benchmarks/loader_cpu_2026-11-25.md gave 648, and 577 and 454 while the same machine was
busier. This is the lowest, since a plan with too few cores starves a GPU.
"""
GPUS_PER_NODE = 8
"""GPUs of a node that nobody has named."""
_LEAST = 1e-9  # of a share of the peak, and of images per second; times would be without meaning below
_MOST_GPUS = 10**6  # more than any machine has; a larger number is a slip of the hand


@dataclass(frozen=True)
class Speed:
    """The machine of a job, and its speed: a share of the GPUs' peak, or images per second of the job."""

    gpu: Gpu
    """The kind of GPU."""
    gpus: int
    """The number of GPUs."""
    mfu: float
    """The share of the GPUs' peak that model FLOPs reach on one node."""
    images_per_second: float | None
    """A measured speed over all GPUs, which is taken as it is for every phase."""
    gpus_per_node: int
    """GPUs that share a node."""
    network: Network
    """The links between the GPUs."""
    cores_per_gpu: int | None
    """Cores of a node, divided by its GPUs; None if nobody has named them."""


def make_speed(
    gpu: str | None,
    gpus: int,
    mfu: float | None = None,
    images_per_second: float | None = None,
    *,
    gpus_per_node: int | None = None,
    site: Site | None = None,
) -> Speed:
    """Check the options of a plan and return the machine that they describe.

    Args:
        gpu: The name of the GPU; default: that of the site, or `DEFAULT_GPU`.
        gpus: The number of GPUs.
        mfu: Share of the peak; default: what is published for this kind of GPU.
        images_per_second: A measured speed over all GPUs, instead of `mfu`.
        gpus_per_node: GPUs of a node; default: 8.
        site: The cluster, for its network and its cores.

    Raises:
        UserError: If an option is out of range, the GPU is unknown, both kinds of speed are given, or the
            GPUs do not fill their nodes.
    """
    if not 1 <= gpus <= _MOST_GPUS:
        raise UserError(
            f"{gpus} is not a number of GPUs; give 1 to {_MOST_GPUS:,}, by --gpus or the job's cluster.nodes"
        )
    if mfu is not None and images_per_second is not None:
        raise UserError("--mfu and --images-per-second exclude each other; give one of them")
    if mfu is not None and not _LEAST <= mfu <= 1.0:
        raise UserError(f"--mfu {mfu} is not a share of the peak; give one above 0 and up to 1, such as 0.4")
    if images_per_second is not None and not _LEAST <= images_per_second <= 1 / _LEAST:
        raise UserError(f"--images-per-second {images_per_second} is not a speed; give a number above 0")

    found = find_gpu(gpu or (site.gpu if site is not None else None) or DEFAULT_GPU)
    per_node = gpus_per_node or GPUS_PER_NODE
    if gpus > per_node and gpus % per_node:
        whole = gpus // per_node * per_node
        raise UserError(
            f"{gpus} GPUs do not fill nodes of {per_node}; give {whole} or {whole + per_node} GPUs, "
            "or set cluster.gpus_per_node"
        )
    return Speed(
        gpu=found,
        gpus=gpus,
        mfu=found.mfu if mfu is None else mfu,
        images_per_second=images_per_second,
        gpus_per_node=per_node,
        network=_network(found, site),
        cores_per_gpu=_cores_per_gpu(per_node, site),
    )


def count_segments(seconds: float, timeout: int) -> int:
    """Return the starts, at least 1, that `seconds` of training need with a time limit of `timeout` s."""
    return max(1, -(-round(seconds) // timeout))


def _network(gpu: Gpu, site: Site | None) -> Network:
    own = None if site is None else site.network
    if own is None:
        return find_network(gpu.name)

    latency = None if own.fabric_latency_us is None else own.fabric_latency_us * 1e-6
    return find_network(
        gpu.name,
        node_bandwidth=own.node_bandwidth,
        fabric_bandwidth=own.fabric_bandwidth,
        fabric_latency=latency,
    )


def _cores_per_gpu(gpus_per_node: int, site: Site | None) -> int | None:
    if site is None:
        return None
    if site.cpus_per_process is not None:
        return site.cpus_per_process
    return None if site.cores_per_node is None else max(1, site.cores_per_node // gpus_per_node)
