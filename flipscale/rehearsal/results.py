"""What a rehearsal finds, as plain data: it is printed, written as JSON, and kept in a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=0, le=1 << 62)]
"""Bytes, operations or calls; bounded, since a file may hold anything."""
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


@dataclass(frozen=True)
class CollectiveResult:
    """The calls of one kind of collective in a step."""

    kind: str
    """all_gather, reduce_scatter, all_reduce, broadcast, reduce, all_to_all or barrier."""
    dtype: str
    """The dtype of the data, such as bfloat16."""
    bytes: Count
    """Bytes of one call: the whole gathered, reduced or scattered buffer of one process."""
    ranks: Count
    """Processes that take part."""
    ranks_per_node: Count
    """Those of them that share a node."""
    blocking: bool
    """Whether nothing of the step runs meanwhile: in the loss, and after forward and backward."""
    count: Count
    """Calls in a step."""
    seconds: Seconds
    """Modelled seconds of all calls."""


@dataclass(frozen=True)
class StepTime:
    """The lower bound of the time of one step, in seconds, and its terms."""

    device: Seconds
    """The kernels, one after the other."""
    network: Seconds
    """All collectives, one after the other."""
    exposed: Seconds
    """The part of `network` that nothing hides: blocking ones, and what exceeds the kernels."""
    launches: Seconds
    """The host's time to start the kernels; it runs at the same time as the device."""
    total: Seconds
    """The larger of `device` + `exposed` and `launches`."""
    bound_by: str
    """The largest term: operations, memory, network or launches."""
    mfu: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    """The share of the peak that the model's operations reach in `total`."""


@dataclass(frozen=True)
class PhaseResult:
    """What the step of one phase does on one rank."""

    name: str
    pairs: Count
    """Image-text pairs of the rank in a step."""
    memory: dict[str, Count]
    """Bytes of device memory at the peak, by what they are for."""
    peak: Count
    """The sum of `memory`."""
    planned: dict[str, Count]
    """What `flipscale plan` estimates, by part, in bytes."""
    planned_peak: Count
    """The sum of `planned`."""
    fits: bool
    """Whether the peak, with room for what is not counted, fits the GPU."""
    problems: dict[str, Count]
    """What makes the host wait for the device or mixes devices, with the place, and how often in a step."""
    launches: Count
    """Kernels in a step."""
    flops: Count
    """Operations of products and attention, those that are recomputed included."""
    model_flops: Count
    """Operations that the model needs: forward and backward, once."""
    moved_bytes: Count
    """Bytes of device memory that kernels read or write."""
    device_seconds: dict[str, Seconds]
    """Modelled seconds of the device by kind of work."""
    not_fused: str | None
    """None if kernels, bytes and seconds are those of compiled blocks; else why not, if there is a reason."""
    collectives: tuple[CollectiveResult, ...]
    time: StepTime


@dataclass(frozen=True)
class CompileResult:
    """What torch.compile makes of the blocks over all phases; only if the job compiles."""

    graphs: Count
    breaks: Count
    """Places at which a graph had to end early."""
    uncompiled: Count
    """Calls for which torch gave up compiling, so that they run in eager mode."""


@dataclass(frozen=True)
class Rehearsal:
    """The rehearsal of a job."""

    job: str
    step_digest: str
    """`digest_of_step` of the job."""
    gpu: str
    gpus: Count
    rank: Count
    sees_waits: bool
    """Whether the device was a fake GPU; on fake CPU tensors, the host waits for nothing."""
    limits: tuple[str, ...]
    """What this rehearsal could not look at, one sentence each."""
    phases: tuple[PhaseResult, ...]
    compiled: CompileResult | None

    @property
    def problems(self) -> dict[str, int]:
        """What makes the host wait or mixes devices in any phase."""
        return {what: count for phase in self.phases for what, count in phase.problems.items()}
