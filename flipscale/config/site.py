"""The site file's schema: what is true of a cluster whatever job runs on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, field_validator

from flipscale.config.job import Count, Duration, Name, PositiveCount, Strict
from flipscale.config.units import parse_bytes

Bytes = Annotated[int, Field(gt=0), BeforeValidator(parse_bytes)]
# A line break would end the line of the batch script that the text is written to.
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Option = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]


def _as_text(value: Any) -> Any:
    """Let a variable be a number in YAML; yes and no are refused, since programs want 1 and 0."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$"), BeforeValidator(_as_text)]

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


class Site(Strict):
    name: Name = "default"
    partition: Line | None = None
    """The cluster's default partition where none is named."""
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    """Features that nodes must have, as sbatch takes them."""
    exclude: tuple[Line, ...] = ()
    """Nodes never to use, names or ranges such as n[3-5]."""
    gpus_per_node: Count | None = None
    """GPUs that a node has; 0 for a cluster without; as many as the job asks where it is not said."""
    gpu: Line | None = None
    """The kind of GPU by its name in `flipscale plan --gpu`; the expected time and memory rest on it."""
    gpu_memory: Bytes | None = None
    """Of one GPU, such as 96GB, where `gpu` does not say it; the memory estimate is held against it."""
    cores_per_node: PositiveCount | None = None
    """Cores that a node has; they are shared out among its processes."""
    cpus_per_process: PositiveCount | None = None
    """Cores for each process; its share of cores_per_node by default."""
    processes_per_node: PositiveCount | None = None
    """One for each GPU by default, and one where there are none."""
    memory_per_node: Bytes | None = None
    """Host memory to ask for, such as 900GB; the cluster's default where it is not said."""
    time_limit: Duration | None = None
    """The most that the partition gives; a job that asks for more runs in several segments."""
    stop_before: Duration = 180
    """How long before the time limit a segment is told to save and leave."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """srun starts every process; with torchrun it starts one torchrun on each node, which starts them."""
    restart: Literal["requeue", "chain"] = "requeue"
    """How a run goes on after preemption, time limit or node failure: the same job again, or a job that was
    submitted to start after it."""
    python: Line | None = None
    """The command that is Python on the nodes, written into the script as it is; this Python by default."""
    setup: tuple[Line, ...] = ()
    """Lines of shell run before the processes start, such as `module load cuda`; written as they are."""
    environment: dict[Variable, Text] = Field(default={})
    """Exported to all processes after setup, such as NCCL_SOCKET_IFNAME."""
    sbatch: dict[Option, Line | int | bool] = Field(default={})
    """Further sbatch options by their long names, such as {reservation: flip, exclusive: true}."""

    @field_validator("sbatch")
    @classmethod
    def _leaves_our_options_alone(cls, options: dict[str, Any]) -> dict[str, Any]:
        for option, value in options.items():
            if option in _OWN_OPTIONS:
                raise ValueError(f"{option} is decided by {_OWN_OPTIONS[option]}")
            if value is False:
                raise ValueError(f"{option} is false, which sbatch cannot say; leave it out")
        return options
