"""The one place that knows every sharding strategy: from a job to its sharded model."""

from __future__ import annotations

from flipscale.config import Job
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP
from flipscale.sharding.activation_checkpointing import apply_activation_checkpointing
from flipscale.sharding.strategy import ShardedModel


def shard(model: FLIP, job: Job, world: World) -> ShardedModel:
    """Prepare `model` and its optimizer for `job.sharding` on the processes of `world`.

    Activation checkpointing comes first, then compilation, then the sharding itself.

    Args:
        model: on the device "meta"; it gets the initial weights of `job.seed`. FSDP makes no more of them
            than a process's share, so that a model may be larger than the memory of any device.
    """
    apply_activation_checkpointing(model, job.sharding.activation_checkpointing)
    if job.sharding.compile:
        for transformer in model.transformers:
            for block in transformer.resblocks:
                block.compile()
    strategy = job.sharding.strategy
    if strategy in ("fsdp", "hsdp"):
        from flipscale.sharding.fsdp import FullySharded

        return FullySharded(model, job, world)
    model.to_empty(device=world.device)
    model.init_weights(job.seed)
    if strategy == "ddp":
        from flipscale.sharding.ddp import DataParallel

        return DataParallel(model, job, world)
    if strategy in ("zero1", "zero2", "zero3"):
        from flipscale.sharding.deepspeed import ZeroSharded

        return ZeroSharded(model, job, world)
    from flipscale.sharding.fairscale import fairscale_sharded

    return fairscale_sharded(model, job, world)
