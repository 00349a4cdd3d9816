"""The checks of a start before its first step: has each process its GPU, and are the nodes fast enough?"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from flipscale.distributed.world import World
from flipscale.errors import RunError

_GIVEN_BY_SLURM = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS")


def check_devices(world: World) -> None:
    """Check that each process has its GPU. All processes call this function together.

    Without this check a process would train on its CPU for days if all were alike, and else the others would
    wait for it in their first collective.

    Args:
        world: The processes of the start.

    Raises:
        RunError: On every process, if one of them has no GPU, though Slurm gave its node some or another
            process has one; the error names the nodes as suspects.
    """
    # Whoever hides all devices asks for the CPU.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    given = not hidden and any(os.environ.get(name, "0") not in ("", "0") for name in _GIVEN_BY_SLURM)
    found = world.gather((world.place.node or "this machine", world.device.type, given))
    expected = any(device != "cpu" or given for _, device, given in found)
    nodes = tuple(dict.fromkeys(node for node, device, _ in found if device == "cpu"))
    if not expected or not nodes:
        return

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    raise RunError(
        f"torch finds no GPU for the processes on {', '.join(nodes)}, though Slurm gave GPUs to the job or "
        f"other processes have theirs (torch {torch.__version__} is built for {build}); look at `nvidia-smi` "
        "there, and name a broken node in `exclude` of the site file",
        "bad_node",
        nodes,
    )


def connect_devices(world: World) -> None:
    """Connect the GPUs of all processes by a first collective. All processes call this function together.

    NCCL connects only then: a broken link shows here and not in the first step. With `device_id` torch would
    connect in `init_process_group`, where the others would wait for a process without a GPU.

    Args:
        world: The processes of the start; `check_devices` comes first.

    Raises:
        RuntimeError: If NCCL cannot connect them; the cause is a link, a GPU, or a process that is gone.
    """
    if world.size == 1 or world.device.type == "cpu":
        return

    dist.all_reduce(torch.zeros(1, device=world.device))
    torch.cuda.synchronize(world.device)


def check_nodes(run: Path, world: World) -> None:
    """Measure all nodes of the start. All processes call this function together.

    Args:
        run: The run directory, on whose disk the nodes write.
        world: The processes of the start.

    Raises:
        RunError: If a node fails its check; the error names the node as suspect.
    """
    from flipscale.orchestration.checks.node import measure_nodes

    bad = [finding for finding in measure_nodes(world, run) if finding.level == "error"]
    if not bad:
        return

    failures = "; ".join(f"{finding.node}: {finding.name} {finding.text}" for finding in bad)
    nodes = tuple(dict.fromkeys(finding.node for finding in bad))
    raise RunError(f"a node failed its check ({failures}); {bad[0].fix}", "bad_node", nodes)
