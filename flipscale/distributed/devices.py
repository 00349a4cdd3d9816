"""The device of a process: one GPU of its machine, or the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch

from flipscale.distributed.placement import Placement
from flipscale.errors import UserError


class _GpuProperties(Protocol):
    """What is read of torch's properties of a GPU, which torch does not type."""

    uuid: object


def own_device(place: Placement) -> torch.device:
    """Choose the device of this process, and make it the current one.

    Each process takes the GPU with its number among the processes of its node. Slurm's `--gpus-per-task` and
    `--gpu-bind` show each process only its own GPU, which has the number 0.

    Args:
        place: The placement of this process.

    Raises:
        UserError: If the process sees several GPUs, but not enough of them.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")

    visible = torch.cuda.device_count()
    number = 0 if visible == 1 else place.local_rank
    if number >= visible:
        raise UserError(
            f"{place.local_size} processes were started on {place.node or 'this machine'}, and process "
            f"{place.local_rank} sees only {visible} GPUs; start one process per GPU"
        )

    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def gpu_id(device: torch.device) -> str:
    """Return what identifies a GPU among those of all machines; an empty string for the CPU."""
    if device.type != "cuda":
        return ""

    properties = cast("_GpuProperties", torch.cuda.get_device_properties(device))
    return str(properties.uuid)


def check_gpus(gpus: Sequence[str]) -> None:
    """Check that no two processes have the same GPU: they would share its memory, and NCCL refuses them.

    Args:
        gpus: The GPU of each process by rank, as `gpu_id` names it.

    Raises:
        UserError: If two processes have the same GPU.
    """
    for gpu in dict.fromkeys(gpus):
        ranks = [rank for rank, other in enumerate(gpus) if other == gpu]
        if gpu and len(ranks) > 1:
            raise UserError(
                f"the processes of ranks {', '.join(map(str, ranks))} have the same GPU ({gpu}); start one "
                "process per GPU, or have Slurm give each process its own (`gpus-per-task: 1` below `sbatch` "
                "in the site file)"
            )
