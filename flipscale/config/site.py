"""The schema of a site file: what holds for a cluster whatever job runs on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, field_validator

from flipscale.config.values import (
    Bytes,
    Count,
    Duration,
    FilledLine,
    Name,
    PositiveCount,
    PositiveFloat,
    Strict,
)
from flipscale.formatting import control_character


def _as_text(value: Any) -> Any:
    """Return a number as text. YAML's yes and no stay booleans and are refused: programs want 1 and 0."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _as_list(value: Any) -> Any:
    """Return a single text as a tuple of one, and a list as a tuple, which strict reading wants."""
    if isinstance(value, str):
        return (value,)
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _lines(text: str) -> str:
    """Check the value of a variable, which may have several lines."""
    if (sign := control_character(text.replace("\n", "").replace("\t", ""))) is not None:
        raise ValueError(f"the value contains {sign!r}, which no batch script can hold; remove it")
    return text


Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Option = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
Lines = Annotated[tuple[FilledLine, ...], BeforeValidator(_as_list)]
VariableValue = Annotated[str, AfterValidator(_lines), BeforeValidator(_as_text)]

# sbatch options that flipscale sets itself, and what decides them.
_OWN_OPTIONS = {
    "account": "the key account",
    "array": "the number of jobs and --at-most",
    "constraint": "the key constraint",
    "cpus-per-task": "the key cpus_per_process",
    "dependency": "flipscale itself",
    "error": "the run directory",
    "exclude": "the key exclude",
    "gpus-per-node": "the key gpus_per_node",
    "job-name": "the job's name",
    "no-requeue": "the key restart",
    "nodes": "the job's cluster.nodes",
    "ntasks": "the key processes_per_node",
    "ntasks-per-node": "the key processes_per_node",
    "open-mode": "flipscale itself",
    "output": "the run directory",
    "partition": "the key partition",
    "qos": "the key qos",
    "requeue": "the key restart",
    "signal": "the key stop_before",
    "time": "the key time_limit and the job's cluster.timeout",
}


class SiteNetwork(Strict):
    """What connects the GPUs of a cluster, if it is not what the table of `flipscale plan` says."""

    node_bandwidth: Bytes | None = None
    """What each GPU sends per second to others of its node, such as 370GB."""
    fabric_bandwidth: Bytes | None = None
    """What each GPU sends per second to other nodes: the node's network cards divided by its GPUs, such as
    12.5GB for one of 100 Gb/s per GPU."""
    fabric_latency_us: PositiveFloat | None = None
    """Microseconds that a message between nodes takes longer than over InfiniBand, such as 25 over TCP."""


class Site(Strict):
    """A cluster, as batch scripts and estimates need to know it."""

    name: Name = "default"
    """The name of the site, for messages."""
    partition: FilledLine | None = None
    """The partition of all jobs; default: the cluster's own."""
    account: FilledLine | None = None
    """The account that jobs are charged to."""
    qos: FilledLine | None = None
    """The quality of service that jobs ask for."""
    constraint: FilledLine | None = None
    """Features that nodes must have, as sbatch takes them."""
    exclude: Lines = ()
    """Nodes never to use, as names or ranges such as n[3-5]."""
    exclude_blamed: bool = True
    """Whether a job avoids the nodes that two segments of its run blame for their end, if enough remain."""
    gpus_per_node: Count | None = None
    """GPUs that a node has; 0 for a cluster without GPUs; default: as many as the job asks for."""
    gpu: FilledLine | None = None
    """The kind of GPU by its name in `flipscale plan --gpu`; expected time and memory are computed
    from it."""
    gpu_memory: Bytes | None = None
    """Memory of one GPU, such as 96GB, if `gpu` does not say it. The memory estimate is compared with it."""
    network: SiteNetwork | None = None
    """The links between the GPUs; default: those that systems with this `gpu` usually have."""
    cores_per_node: PositiveCount | None = None
    """Cores that a node has; they are divided among its processes."""
    cpus_per_process: PositiveCount | None = None
    """Cores per process; default: its share of cores_per_node."""
    processes_per_node: PositiveCount | None = None
    """Processes per node; default: one per GPU, and one without GPUs."""
    memory_per_node: Bytes | None = None
    """Host memory to ask for, such as 900GB; default: the cluster's own."""
    time_limit: Duration | None = None
    """The longest time that the partition allows. A job that asks for more runs in several segments."""
    stop_before: Duration = 180
    """How long before the time limit a segment is signalled to save and exit."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """`srun` starts every process; `torchrun` starts one torchrun per node, which starts the processes."""
    restart: Literal["requeue", "chain"] = "requeue"
    """How a run resumes after preemption, time limit or node failure: `requeue` starts the same job again;
    `chain` submits a job that starts after it."""
    python: FilledLine | None = None
    """The command that is Python on the nodes, written into the script as it is; default: this Python."""
    setup: Lines = ()
    """Lines of shell to run before the processes start, such as `module load cuda`; written as they are."""
    environment: dict[Variable, VariableValue] = Field(default_factory=dict)
    """Variables exported to all processes after setup, such as NCCL_SOCKET_IFNAME (gloo uses it, too)."""
    sbatch: dict[Option, FilledLine | int | bool] = Field(default_factory=dict)
    """Further sbatch options by their long names, such as {reservation: flip, exclusive: true}."""

    @field_validator("sbatch")
    @classmethod
    def _refuse_own_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        for option, value in options.items():
            if option in _OWN_OPTIONS:
                raise ValueError(f"{option} is decided by {_OWN_OPTIONS[option]}; leave it out")
            if value is False:
                raise ValueError(f"{option} is false, which sbatch cannot express; leave it out")
        return options
