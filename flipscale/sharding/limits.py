"""The limits of each sharding strategy, known before torch is imported."""

from __future__ import annotations

from flipscale.config import Sharding
from flipscale.errors import UserError


def check_sharding(sharding: Sharding, world_size: int, device_type: str) -> None:
    """Check that a strategy can run on these processes.

    Args:
        sharding: The `sharding` block of a job.
        world_size: The number of processes.
        device_type: "cuda" or "cpu".

    Raises:
        UserError: If the strategy cannot run on this number of processes, this kind of device, or in this
            precision.
    """
    if sharding.shard_size is not None and world_size % sharding.shard_size:
        larger = sharding.shard_size > world_size
        wrong = f"but there are only {world_size}" if larger else f"not a divisor of the {world_size}"
        raise UserError(
            f"sharding.shard_size is {sharding.shard_size}, {wrong} processes; "
            f"set it to a divisor of {world_size}"
        )

    if sharding.strategy == "fairscale_fsdp" and device_type != "cuda":
        raise UserError(
            "sharding.strategy fairscale_fsdp runs on CUDA GPUs only; use fsdp, which also runs on CPUs"
        )

    if sharding.strategy.startswith(("zero", "fairscale")) and sharding.precision == "fp64":
        raise UserError(
            f"sharding.strategy {sharding.strategy} cannot train in fp64; use ddp or fsdp, or fp32 or bf16"
        )
