"""Who this process is among all processes of a start, as srun, torchrun or submitit's local executor says."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from flipscale.errors import UserError

# Below 32,768, where Linux begins to take ports for outgoing connections: rank 0 could not listen on the port
# of one of those, even in the minute after it was closed.
_PORTS = range(25_000, 32_768)


@dataclass(frozen=True)
class Placement:
    """One process of a start. The rendezvous of two starts of one job never meets: each has its own port."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: str = ""
    nodes: tuple[str, ...] = ()
    """All nodes of the start, in rank order, where the launcher says."""
    job_id: str = ""
    """The Slurm job, or the local executor's; empty without either."""
    restarts: int = 0
    """How often Slurm started this job before."""
    rendezvous: str = ""
    """HOST:PORT where rank 0 listens; empty for one process, and under torchrun, which has its own."""

    @property
    def under_slurm(self) -> bool:
        return bool(self.job_id) and bool(self.nodes)

    @property
    def under_local_executor(self) -> bool:
        """Whether submitit's controller on this machine started it."""
        return bool(self.job_id) and not self.nodes

    @property
    def attempt(self) -> str:
        """Names this start of this job; all of its processes agree on it. Empty outside of jobs."""
        return f"{self.job_id}.{self.restarts}" if self.job_id else ""


def read_placement() -> Placement:
    """This process's place; alone without a launcher. torchrun goes first: srun may have started it."""
    env = os.environ
    node = env.get("SLURMD_NODENAME") or socket.gethostname()
    job_id, restarts, nodes = "", 0, ()
    if "SLURM_JOB_ID" in env:
        job_id, restarts = _array_aware_id(env), int(env.get("SLURM_RESTART_COUNT") or 0)
        nodes = _slurm_nodes()
    elif "SUBMITIT_LOCAL_JOB_ID" in env:
        job_id = env["SUBMITIT_LOCAL_JOB_ID"]
    known = {"node": node, "nodes": nodes, "job_id": job_id, "restarts": restarts}
    if "WORLD_SIZE" in env:  # torchrun; its local size is missing where a person set the variables
        size = int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", size))
        return Placement(int(env.get("RANK", 0)), size, *local, **known)
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        size = int(env["SLURM_STEP_NUM_TASKS"])
        local_size = _tasks_on_node(env, int(env["SLURM_NODEID"]))
        local = int(env["SLURM_LOCALID"]), local_size
    elif "SUBMITIT_LOCAL_GLOBALID" in env:
        size = int(env["SUBMITIT_LOCAL_NTASKS"])
        local = int(env["SUBMITIT_LOCAL_LOCALID"]), size
    else:
        return Placement(**known)
    rank = int(env.get("SLURM_PROCID") or env["SUBMITIT_LOCAL_GLOBALID"])
    if size == 1:
        return Placement(**known)
    host = rendezvous_host(nodes) if nodes else "127.0.0.1"
    return Placement(rank, size, *local, **known, rendezvous=f"{host}:{rendezvous_port(job_id, restarts)}")


def rendezvous_port(job_id: str, restarts: int) -> int:
    """The same port on all processes of a start, and another one at the next start."""
    number = int.from_bytes(hashlib.sha256(f"{job_id}.{restarts}".encode()).digest()[:8], "big")
    return _PORTS[number % len(_PORTS)]


def rendezvous_host(nodes: tuple[str, ...]) -> str:
    """A name or address of the first node that every node can reach.

    The node's own name where it resolves. Else the address that Slurm has for it, and as a last resort that
    of the node where srun runs, which is the first node for a batch job.
    """
    from flipscale.slurm import SlurmError, run_slurm

    first = nodes[0]
    if _resolves(first):
        return first
    try:
        described = run_slurm("scontrol", "show", "node", "-o", first)
    except (SlurmError, UserError):
        described = ""
    address = next((f[9:] for f in described.split() if f.startswith("NodeAddr=")), "")
    if address and (address != first):
        return address
    launched_from = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not launched_from:
        raise UserError(
            f"the first node, {first}, has no name that resolves and no address that Slurm knows; "
            "set MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE for every process"
        )
    return launched_from


def _slurm_nodes() -> tuple[str, ...]:
    """The nodes of this Slurm job, in order."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    return tuple(SlurmJobEnvironment().hostnames)


def _array_aware_id(env: Mapping[str, str]) -> str:
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def _tasks_on_node(env: Mapping[str, str], node: int) -> int:
    """From SLURM_STEP_TASKS_PER_NODE, which says `8(x3),4` for three nodes of 8 tasks and one of 4."""
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
