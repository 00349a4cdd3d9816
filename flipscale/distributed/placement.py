"""Which process of a start this is, as srun, torchrun or submitit's local executor says."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flipscale.errors import UserError
from flipscale.slurm import SlurmError, read_node_address

# Below 32,768, where Linux's range of ports for outgoing connections begins. Rank 0 could not listen on the
# port of such a connection, even in the minute after it was closed.
_PORTS = range(25_000, 32_768)


@dataclass(frozen=True)
class Placement:
    """The place of one process in a start.

    Each start of a job has a port of its own, so that its processes never meet those of another start.
    """

    rank: int = 0
    """Number of the process among all processes of the start."""
    size: int = 1
    """Processes of the start."""
    local_rank: int = 0
    """Number of the process among those of its node."""
    local_size: int = 1
    """Processes of the node."""
    node: str = ""
    """The node of the process."""
    nodes: tuple[str, ...] = ()
    """All nodes of the start in rank order, if the launcher gives them."""
    job_id: str = ""
    """The job of Slurm or of the local executor; empty without either."""
    restarts: int = 0
    """How often Slurm started this job before."""
    rendezvous: str = ""
    """HOST:PORT on which rank 0 listens; empty for one process, and under torchrun, which has its own."""

    @property
    def under_slurm(self) -> bool:
        """Whether Slurm started the process."""
        return bool(self.job_id) and bool(self.nodes)

    @property
    def under_local_executor(self) -> bool:
        """Whether submitit's controller on this machine started the process."""
        return bool(self.job_id) and not self.nodes

    @property
    def attempt(self) -> str:
        """The name of this start of this job, which all of its processes share; empty outside of jobs."""
        return f"{self.job_id}.{self.restarts}" if self.job_id else ""


def read_placement() -> Placement:
    """Read this process's placement from the environment; without a launcher it is the only process.

    Raises:
        UserError: If no address of the first node is known.
    """
    env = os.environ
    here = _read_job(env)

    # torchrun comes first: srun may have started it. Its local size is missing if a person set the variables.
    if "WORLD_SIZE" in env:
        size = int(env["WORLD_SIZE"])
        return replace(
            here,
            rank=int(env.get("RANK", 0)),
            size=size,
            local_rank=int(env.get("LOCAL_RANK", 0)),
            local_size=int(env.get("LOCAL_WORLD_SIZE", size)),
        )

    place = _read_ranks(env, here)
    if place.size == 1:
        return here

    host = rendezvous_host(place.nodes) if place.nodes else "127.0.0.1"
    return replace(place, rendezvous=f"{host}:{rendezvous_port(place.job_id, place.restarts)}")


def rendezvous_port(job_id: str, restarts: int) -> int:
    """Return the port of a start: the same for all of its processes, and another one for the next start."""
    number = int.from_bytes(hashlib.sha256(f"{job_id}.{restarts}".encode()).digest()[:8], "big")
    return _PORTS[number % len(_PORTS)]


def rendezvous_host(nodes: tuple[str, ...]) -> str:
    """Return a name or an address of the first node that every node can reach.

    This is the node's name if it resolves, else the address that Slurm has for it. The last resort is the
    address of the node where srun runs, which is the first node of a batch job.

    Args:
        nodes: The nodes of the start, in rank order.

    Raises:
        UserError: If there is none of these.
    """
    first = nodes[0]
    if _resolves(first):
        return first

    try:
        address = read_node_address(first)
    except (SlurmError, UserError):
        address = ""
    if address and address != first:
        return address

    launched_from = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not launched_from:
        raise UserError(
            f"the first node, {first}, has no name that resolves and no address that Slurm knows; "
            "set MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE for every process"
        )
    return launched_from


def _read_job(env: Mapping[str, str]) -> Placement:
    """Return the node and the job of the process, without its ranks."""
    node = env.get("SLURMD_NODENAME") or socket.gethostname()

    if "SLURM_JOB_ID" in env:
        return Placement(
            node=node,
            nodes=_slurm_nodes(),
            job_id=_slurm_job_id(env),
            restarts=int(env.get("SLURM_RESTART_COUNT") or 0),
        )
    return Placement(node=node, job_id=env.get("SUBMITIT_LOCAL_JOB_ID", ""))


def _read_ranks(env: Mapping[str, str], here: Placement) -> Placement:
    """Return the placement with the ranks that srun or the local executor gave the process, if any."""
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        return replace(
            here,
            rank=int(env["SLURM_PROCID"]),
            size=int(env["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(env["SLURM_LOCALID"]),
            local_size=_tasks_on_node(env, int(env["SLURM_NODEID"])),
        )
    if "SUBMITIT_LOCAL_GLOBALID" in env:
        size = int(env["SUBMITIT_LOCAL_NTASKS"])
        return replace(
            here,
            rank=int(env.get("SLURM_PROCID") or env["SUBMITIT_LOCAL_GLOBALID"]),
            size=size,
            local_rank=int(env["SUBMITIT_LOCAL_LOCALID"]),
            local_size=size,
        )
    return here


def _slurm_nodes() -> tuple[str, ...]:
    """Return the nodes of this Slurm job, in order."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    return tuple(SlurmJobEnvironment().hostnames)


def _slurm_job_id(env: Mapping[str, str]) -> str:
    """Return the id of the job; for an element of an array, that of the array and the element's number."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def _tasks_on_node(env: Mapping[str, str], node: int) -> int:
    """Return the tasks of a node from a text such as `8(x3),4`: three nodes of 8 tasks and one of 4."""
    counts: list[int] = []
    for part in env["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[node]


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False
