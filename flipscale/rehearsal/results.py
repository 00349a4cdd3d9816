"""What a rehearsal finds, as plain data: it is printed, written as JSON, and kept in a run directory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CollectiveResult:
    """The calls of one kind of collective in a step."""

    kind: str
    """all_gather, reduce_scatter, all_reduce, broadcast, reduce, all_to_all or barrier."""
    dtype: str
    """The dtype of the data, such as bfloat16."""
    bytes: int
    """Bytes of one call: the whole gathered, reduced or scattered buffer of one process."""
    ranks: int
    """Processes that take part."""
    ranks_per_node: int
    """Those of them that share a node."""
    blocking: bool
    """Whether the step waits for it before its next operator."""
    count: int
    """Calls in a step."""
    seconds: float
    """Modelled seconds of all calls."""


@dataclass(frozen=True)
class StepTime:
    """The lower bound of the time of one step, in seconds, and its terms."""

    device: float
    """The kernels, one after the other."""
    network: float
    """All collectives, one after the other."""
    exposed: float
    """The part of `network` that nothing hides: blocking ones, and what exceeds the kernels."""
    launches: float
    """The host's time to start the kernels; it runs at the same time as the device."""
    total: float
    """The larger of `device` + `exposed` and `launches`."""
    bound_by: str
    """The largest term: operations, memory, network or launches."""
    mfu: float
    """The share of the peak that the model's operations reach in `total`."""


@dataclass(frozen=True)
class PhaseResult:
    """What the step of one phase does on one rank."""

    name: str
    pairs: int
    """Image-text pairs of the rank in a step."""
    memory: dict[str, int]
    """Bytes of device memory at the peak, by what they are for."""
    peak: int
    """The sum of `memory`."""
    planned: dict[str, int]
    """What `flipscale plan` estimates, by part, in bytes."""
    planned_peak: int
    """The sum of `planned`."""
    fits: bool
    """Whether the peak, with room for what is not counted, fits the GPU."""
    problems: dict[str, int]
    """What makes the host wait for the device or mixes devices, with the place, and how often in a step."""
    launches: int
    """Kernels in a step."""
    flops: int
    """Operations of products and attention, those that are recomputed included."""
    model_flops: int
    """Operations that the model needs: forward and backward, once."""
    moved_bytes: int
    """Bytes of device memory that kernels read or write."""
    device_seconds: dict[str, float]
    """Modelled seconds of the device by kind of work."""
    not_fused: str | None
    """None if kernels, bytes and seconds are those of compiled blocks; else why not, if there is a reason."""
    collectives: tuple[CollectiveResult, ...]
    time: StepTime


@dataclass(frozen=True)
class CompileResult:
    """What torch.compile makes of the blocks over all phases; only if the job compiles."""

    graphs: int
    breaks: int
    """Places at which a graph had to end early."""
    uncompiled: int
    """Calls for which torch gave up compiling, so that they run in eager mode."""


@dataclass(frozen=True)
class Rehearsal:
    """The rehearsal of a job."""

    job: str
    gpu: str
    gpus: int
    rank: int
    limits: tuple[str, ...]
    """What this rehearsal could not look at, one sentence each."""
    phases: tuple[PhaseResult, ...]
    compiled: CompileResult | None

    @property
    def problems(self) -> dict[str, int]:
        """What makes the host wait or mixes devices in any phase."""
        return {what: count for phase in self.phases for what, count in phase.problems.items()}
