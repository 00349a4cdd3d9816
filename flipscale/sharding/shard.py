"""The one place that knows every sharding strategy: from a job to its sharded model."""

from __future__ import annotations

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP
from flipscale.sharding.activation_checkpointing import apply_activation_checkpointing
from flipscale.sharding.strategy import ShardedModel


def shard(model: FLIP, sharding: Sharding, optimizer: Optimizer, seed: int, world: World) -> ShardedModel:
    """Prepare `model` and its optimizer for `sharding` on the processes of `world`.

    Activation checkpointing comes first, then compilation, then the sharding itself.

    Args:
        model: on the device "meta"; it gets the initial weights of `job.seed`. FSDP makes no more of them
            than a process's share, so that a model may be larger than the memory of any device.
    """
    apply_activation_checkpointing(model, sharding.activation_checkpointing)
    if sharding.compile:
        for transformer in model.transformers:
            for block in transformer.resblocks:
                block.compile()
    strategy = sharding.strategy
    if strategy in ("fsdp", "hsdp"):
        from flipscale.sharding.fsdp import FsdpModel

        return FsdpModel(model, sharding, optimizer, seed, world)
    model.to_empty(device=world.device)
    model.init_weights(seed)
    if strategy == "ddp":
        from flipscale.sharding.ddp import DdpModel

        return DdpModel(model, sharding, optimizer, world)
    if strategy in ("zero1", "zero2", "zero3"):
        from flipscale.sharding.deepspeed import ZeroModel

        return ZeroModel(model, sharding, optimizer, world)
    from flipscale.sharding.fairscale import fairscale_sharded

    return fairscale_sharded(model, sharding, optimizer, world)
