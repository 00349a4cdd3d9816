"""The one place that knows every sharding strategy: from the blocks of a job to its sharded model."""

from __future__ import annotations

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP
from flipscale.sharding.activation_checkpointing import apply_activation_checkpointing
from flipscale.sharding.compilation import compile_blocks
from flipscale.sharding.strategy import ShardedModel


def shard(model: FLIP, sharding: Sharding, optimizer: Optimizer, seed: int, world: World) -> ShardedModel:
    """Shard a model and its optimizer over the processes of a run; all processes call it together.

    Args:
        model: A model on the device "meta". FSDP materializes no more of it than a process's share, so that
            a model may be larger than the memory of any device.
        sharding: The `sharding` block of the job.
        optimizer: The `optimizer` block of the job.
        seed: The seed of the initial weights.
        world: The processes of the run.
    """
    # Recomputation first, then compilation, then sharding: each wraps what the one before made.
    strategy = sharding.strategy
    mode = sharding.activation_checkpointing
    apply_activation_checkpointing(model, mode, gathers_inside=strategy == "zero3")
    if sharding.compile:
        compile_blocks(model)

    if strategy in ("fsdp", "hsdp"):
        from flipscale.sharding.fsdp import FsdpModel

        return FsdpModel(model, sharding, optimizer, seed, world)

    # The other strategies begin with the whole model in every process.
    model.to_empty(device=world.device)
    model.init_weights(seed)
    if strategy == "ddp":
        from flipscale.sharding.ddp import DdpModel

        return DdpModel(model, sharding, optimizer, world)
    if strategy in ("zero1", "zero2", "zero3"):
        from flipscale.sharding.deepspeed import ZeroModel

        return ZeroModel(model, sharding, optimizer, world)
    if strategy == "fairscale_oss":
        from flipscale.sharding.fairscale_oss import FairscaleOssModel

        return FairscaleOssModel(model, sharding, optimizer, world)

    from flipscale.sharding.fairscale_fsdp import FairscaleFsdpModel

    return FairscaleFsdpModel(model, sharding, optimizer, world)
