"""Whether a job fits into the memory of its GPUs, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flipscale.config import Job, Sharding
from flipscale.models.presets import ModelSpec
from flipscale.planning.gpus import GPUS, Gpu
from flipscale.planning.memory import estimate_memory

MARGIN = 0.08
"""The share of a GPU's memory that is left for fragmentation of torch's allocator."""
CONTEXT = 2 * 2**30
"""The bytes that are left for the CUDA context and the buffers of NCCL and cuBLAS."""

_TIMES_MORE = (2, 4, 8, 16, 32, 64)
"""How many times as many GPUs a remedy may ask for."""

Changes = dict[str, Any]
"""Keys of the `sharding` block with their new values."""


def fits(needed: int, memory: int) -> bool:
    """Return whether `needed` bytes of tensors fit into a GPU of `memory` bytes, with room for all else."""
    return needed <= memory * (1 - MARGIN) - CONTEXT


def advise(job: Job, spec: ModelSpec, world_size: int, memory: int) -> tuple[str, ...] | None:
    """Return the first change that makes every phase of a job fit, or None if no change does.

    Changes are tried in the order of their cost in speed: recomputing cheap activations, sharding,
    recomputing all activations, both, and finally micro-batches, each as large as fits.

    Args:
        job: The job.
        spec: The job's model.
        world_size: Processes of the job.
        memory: Bytes of one GPU.

    Returns:
        Overrides such as `sharding.strategy=fsdp`.
    """
    largest = -(-max(phase.batch_size for phase in job.phases) // world_size)

    for changes in _changes(job.sharding, largest):
        sharding = Sharding.model_validate({**job.sharding.model_dump(), **changes})
        changed = job.model_copy(update={"sharding": sharding})
        if all(fits(phase.total, memory) for phase in estimate_memory(changed, spec, world_size)):
            return tuple(f"sharding.{key}={as_yaml(value)}" for key, value in changes.items())

    return None


def remedy(job: Job, spec: ModelSpec, world_size: int, gpu: Gpu) -> str:
    """Return one sentence on what would make a job fit that no change of its sharding makes fit.

    Args:
        job: The job.
        spec: The job's model.
        world_size: Processes of the job.
        gpu: The GPU that it does not fit.
    """
    cures: list[str] = []
    for larger in sorted(GPUS.values(), key=lambda other: other.memory):
        if larger.memory > gpu.memory and (how := _how(job, spec, world_size, larger.memory)) is not None:
            cures.append(f"it fits {world_size} x {larger.name}{how}")
            break

    for more in (world_size * factor for factor in _TIMES_MORE):
        if job.data.lanes % more == 0 and (how := _how(job, spec, more, gpu.memory)) is not None:
            cures.append(f"it fits {more} x {gpu.name}{how}")
            break

    cure = (
        ", and ".join(cures)
        or "no GPU of the table and no number of them holds it: take a smaller model or batch"
    )
    return f"no change of sharding makes {job.model.preset} fit {world_size} x {gpu.name}; {cure}"


def _how(job: Job, spec: ModelSpec, world_size: int, memory: int) -> str | None:
    """Return with what a job fits, as the end of a sentence; None if it does not."""
    if all(fits(phase.total, memory) for phase in estimate_memory(job, spec, world_size)):
        return ""
    changes = advise(job, spec, world_size, memory)
    return None if changes is None else f" with {' '.join(changes)}"


def as_yaml(value: object) -> str:
    """Return a value as a job file has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changes(sharding: Sharding, local_batch: int) -> Iterator[Changes]:
    """Yield changes to try, the cheapest first; `local_batch` is the largest batch of one process."""
    mode = sharding.activation_checkpointing
    strategy = sharding.strategy

    fsdp: Changes = {}
    if strategy in ("ddp", "fairscale_oss", "zero1", "zero2") and not sharding.offload_optimizer:
        fsdp = {"strategy": "fsdp"}
    elif strategy == "hsdp":
        fsdp = {"strategy": "fsdp", "shard_size": None}
    if strategy in ("fsdp", "hsdp") and not sharding.reshard_after_forward:
        fsdp["reshard_after_forward"] = True
    selective: Changes = {"activation_checkpointing": "selective"} if mode == "none" else {}
    full: Changes = {"activation_checkpointing": "full"} if mode != "full" else {}

    # The job as it is does not fit, so a combination that changes nothing is not tried.
    nothing: Changes = {}
    tried = [nothing]
    for changes in (selective, fsdp, {**fsdp, **selective}, full, {**fsdp, **full}):
        if changes not in tried:
            tried.append(changes)
            yield changes

    micro = min(local_batch, sharding.micro_batch or local_batch)
    while micro > 1:
        micro //= 2
        for changes in (nothing, selective, {**fsdp, **selective}, {**fsdp, **full}):
            yield {**changes, "micro_batch": micro}
