"""Is every node as fast as it should be: matrix products, memory, all-reduce, and the file system.

Takes some seconds, and finds the node that would slow the whole run down or end it.
"""

from __future__ import annotations

import os
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from flipscale.distributed.world import World
from flipscale.orchestration.checks.finding import Check

_REPEATS = 5  # the best of them counts: a busy moment is no broken node
_SLOWER_THAN_OTHERS = 0.5  # of the median node's figure
_HOST_BYTES = 2**27
_FILE_BYTES = 2**26


@dataclass(frozen=True)
class _Measure:
    name: str
    unit: str
    limit: float
    """What a working node exceeds by far; below it, it is broken or misconfigured."""
    mend: str
    limit_is_most: bool = False

    def fails(self, figure: float) -> bool:
        return figure > self.limit if self.limit_is_most else figure < self.limit

    def told(self, figure: float) -> str:
        relation = "at most" if self.limit_is_most else "at least"
        return f"{figure:.3g} {self.unit} ({relation} {self.limit:g})"


_PRODUCT_GPU = _Measure("matrix product", "TFLOP/s in bf16", 20.0, "look at the GPU's clocks and temperature")
_PRODUCT_CPU = _Measure("matrix product", "TFLOP/s in fp32", 0.001, "see what else uses the cores")
_MEMORY = _Measure("host memory", "GB/s copied", 0.5, "see what else uses the memory")
_REDUCE_GPU = _Measure("all-reduce", "GB/s", 1.0, "look at NCCL_IB_HCA, NCCL_SOCKET_IFNAME and the links")
_REDUCE_CPU = _Measure("all-reduce", "GB/s", 0.005, "look at GLOO_SOCKET_IFNAME and the network")
_FILE_WRITE = _Measure("file write", "MB/s with fsync", 5.0, "keep runs on a faster file system")
_SYNC = _Measure("fsync", "s", 5.0, "keep runs on a faster file system", limit_is_most=True)

_Figures = dict[str, float | str]  # by the measure's name; a string says why there is no figure


def check_node(world: World, directory: Path) -> list[Check]:
    """Measure all nodes; every process calls it, and gets the same list: one check a measure and node.

    A node's figure is that of its slowest process. It is a problem where it misses the stated limit, or half
    of the median of all nodes.

    Args:
        directory: where the first process of each node writes (64 MiB, removed again).
    """
    on_gpu = world.device.type == "cuda"
    product = _PRODUCT_GPU if on_gpu else _PRODUCT_CPU
    reduce = _REDUCE_GPU if on_gpu else _REDUCE_CPU
    figures: _Figures = {}
    _measure(figures, {product.name: lambda: _matrix_product(world.device), _MEMORY.name: _host_memory})
    if world.local_rank == 0:
        _measure(figures, {_FILE_WRITE.name: lambda: _write(directory), _SYNC.name: lambda: _sync(directory)})
    if world.size > 1:
        world.sum([0])  # start together
        _measure(figures, {reduce.name: lambda: _all_reduce(world)})
    by_node: dict[str, list[_Figures]] = {}
    for node, measured in world.gather((world.place.node, figures)):
        by_node.setdefault(node, []).append(measured)
    checks = [
        check
        for measure in (product, _MEMORY, reduce, _FILE_WRITE, _SYNC)
        for check in _judge(measure, {node: _of(measure, parts) for node, parts in by_node.items()})
    ]
    if world.size == 1:
        checks.append(Check("all-reduce", "skipped", "one process", "start it with torchrun or srun"))
    return checks


def _measure(figures: _Figures, measures: dict[str, Callable[[], float]]) -> None:
    for name, measure in measures.items():
        try:
            figures[name] = measure()
        except (RuntimeError, OSError) as error:  # a broken GPU, a full disk: the finding itself
            figures[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]


def _of(measure: _Measure, parts: list[_Figures]) -> list[float | str]:
    return [part[measure.name] for part in parts if measure.name in part]


def _judge(measure: _Measure, nodes: dict[str, list[float | str]]) -> list[Check]:
    """One check for each node that has figures of this measure."""
    worst: dict[str, float] = {}
    checks: list[Check] = []
    for node, values in nodes.items():
        errors = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if not isinstance(value, str)]
        if errors:
            checks.append(Check(measure.name, "problem", errors[0], measure.mend, node))
        elif numbers:
            worst[node] = max(numbers) if measure.limit_is_most else min(numbers)
    median = statistics.median(worst.values()) if worst else 0.0
    for node, figure in worst.items():
        found = measure.told(figure)
        slow = not measure.limit_is_most and figure < _SLOWER_THAN_OTHERS * median
        if slow:
            found += f"; the median node has {median:.3g}"
        bad = slow or measure.fails(figure)
        checks.append(
            Check(measure.name, "problem" if bad else "ok", found, measure.mend if bad else "", node)
        )
    return sorted(checks, key=lambda check: check.node)


def _matrix_product(device: torch.device) -> float:
    """TFLOP/s of square products."""
    on_gpu = device.type == "cuda"
    side, kind = (8192, torch.bfloat16) if on_gpu else (768, torch.float32)
    left = torch.randn(side, side, device=device, dtype=kind)
    right = torch.randn(side, side, device=device, dtype=kind)

    def work() -> None:
        torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize(device)

    return 2 * side**3 / _best(work) / 1e12


def _host_memory() -> float:
    """GB/s read and written by a copy."""
    source = torch.ones(_HOST_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * _HOST_BYTES / _best(lambda: target.copy_(source)) / 1e9


def _all_reduce(world: World) -> float:
    """GB/s that each process sends and receives in a ring: bytes x 2 (n - 1) / n."""
    on_gpu = world.device.type == "cuda"
    numbers = torch.ones(2**26 if on_gpu else 2**20, device=world.device)

    def work() -> None:
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        if on_gpu:
            torch.cuda.synchronize(world.device)

    sent = 2 * (world.size - 1) / world.size * numbers.numel() * numbers.element_size()
    return sent / _best(work) / 1e9


def _write(directory: Path) -> float:
    """MB/s of a file that is on disk at the end."""
    data = os.urandom(2**20) * (_FILE_BYTES // 2**20)
    return _FILE_BYTES / _timed_write(directory, data) / 1e6


def _sync(directory: Path) -> float:
    """Seconds until a small file is on disk."""
    return _timed_write(directory, b"x")


def _timed_write(directory: Path, data: bytes) -> float:
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


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some repetitions, after one to warm up."""
    work()
    times: list[float] = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
