"""Functions that run in several real processes over gloo."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Worker = Callable[[int, int], None]


def spawn(worker: Worker, world_size: int, directory: Path) -> None:
    """Call `worker(rank, world_size)` in every process, and raise what any of them raises.

    Args:
        worker: A function of a module, since the processes import it.
        world_size: The number of processes.
        directory: An empty directory in which they find each other.
    """
    # One clean interpreter imports torch for all of them.
    mp.get_context("forkserver").set_forkserver_preload(["torch.distributed", "torch.nn.parallel"])
    arguments = (worker, world_size, str(directory / "rendezvous"))
    mp.start_processes(_start, arguments, nprocs=world_size, start_method="forkserver")


def _start(rank: int, worker: Worker, world_size: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # a renamed collective would warn at every step
            worker(rank, world_size)
    finally:
        dist.destroy_process_group()
