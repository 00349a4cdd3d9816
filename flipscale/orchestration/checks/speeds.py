"""The speeds that a process can measure: its device, its memory, its network and its file system."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from flipscale.distributed.world import World

REDUCED_BYTES = 2**28
"""Bytes of the tensor that GPUs all-reduce."""
_REPEATS = 5  # the best of them counts: a busy moment does not make a node a broken one
_HOST_BYTES = 2**27
_FILE_BYTES = 2**26


def matrix_product(device: torch.device) -> float:
    """Return the TFLOP/s of square products: bf16 with side 8192 on a GPU, fp32 with side 768 on a CPU."""
    on_gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (768, torch.float32)
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)

    def work() -> None:
        torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize(device)

    return 2 * side**3 / _best_seconds(work) / 1e12


def host_memory() -> float:
    """Return the GB/s that a copy of 128 MiB reads and writes."""
    source = torch.ones(_HOST_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * _HOST_BYTES / _best_seconds(lambda: target.copy_(source)) / 1e9


def all_reduce(world: World) -> float:
    """Return the GB/s that each process sends and receives in a ring: bytes x 2 (n - 1) / n."""
    on_gpu = world.device.type == "cuda"
    numbers = torch.ones(REDUCED_BYTES // 4 if on_gpu else 2**20, device=world.device)

    def work() -> None:
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        if on_gpu:
            torch.cuda.synchronize(world.device)

    sent = 2 * (world.size - 1) / world.size * numbers.numel() * numbers.element_size()
    return sent / _best_seconds(work) / 1e9


def file_write(directory: Path) -> float:
    """Return the MB/s of a file of 64 MiB that is on disk at the end."""
    data = os.urandom(2**20) * (_FILE_BYTES // 2**20)
    return _FILE_BYTES / _write_seconds(directory, data) / 1e6


def file_sync(directory: Path) -> float:
    """Return the seconds until a file of one byte is on disk."""
    return _write_seconds(directory, b"x")


def _write_seconds(directory: Path, data: bytes) -> float:
    path = directory / f".node_check_{uuid.uuid4().hex}"
    try:
        began = time.perf_counter()
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return time.perf_counter() - began
    finally:
        path.unlink(missing_ok=True)


def _best_seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of _REPEATS repetitions, after one to warm up."""
    work()

    times: list[float] = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
