"""Whether a job fits into the memory of its GPUs, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flipscale.config import Job, Sharding
from flipscale.models.presets import ModelSpec
from flipscale.planning.memory import estimate_memory

MARGIN = 0.08
"""Share of a GPU's memory that is left for the fragmentation of torch's allocator."""
CONTEXT = 2 * 2**30
"""Bytes that are left for the CUDA context and the buffers of NCCL and cuBLAS."""

Changes = dict[str, Any]


def fits(needed: int, memory: int) -> bool:
    """Whether `needed` bytes of tensors go into a GPU of `memory` bytes, with room for what is no tensor."""
    return needed <= memory * (1 - MARGIN) - CONTEXT


def advise(job: Job, spec: ModelSpec, world_size: int, memory: int) -> tuple[str, ...] | None:
    """The first change that makes every phase of `job` fit, as overrides; None where none of them does.

    In the order of what they cost in speed: recomputing what is cheap, sharding, recomputing everything,
    both, and at last micro-batches, each as large as fits.
    """
    largest = -(-max(phase.batch_size for phase in job.phases) // world_size)
    for changes in _changes(job.sharding, largest):
        sharding = Sharding.model_validate({**job.sharding.model_dump(), **changes})
        changed = job.model_copy(update={"sharding": sharding})
        if all(fits(phase.total, memory) for phase in estimate_memory(changed, spec, world_size)):
            return tuple(f"sharding.{key}={value}" for key, value in changes.items())
    return None


def _changes(sharding: Sharding, local_batch: int) -> Iterator[Changes]:
    mode, strategy = sharding.activation_checkpointing, sharding.strategy
    fsdp: Changes = {}
    if strategy in ("ddp", "fairscale_oss", "zero1", "zero2") and not sharding.offload_optimizer:
        fsdp = {"strategy": "fsdp"}
    selective: Changes = {"activation_checkpointing": "selective"} if mode == "none" else {}
    full: Changes = {"activation_checkpointing": "full"} if mode != "full" else {}
    tried: list[Changes] = [{}]
    for changes in (selective, fsdp, {**fsdp, **selective}, full, {**fsdp, **full}):
        if changes not in tried:
            tried.append(changes)
            yield changes
    micro = min(local_batch, sharding.micro_batch or local_batch)
    while micro > 1:
        micro //= 2
        for changes in ({}, selective, {**fsdp, **selective}, {**fsdp, **full}):
            yield {**changes, "micro_batch": micro}
