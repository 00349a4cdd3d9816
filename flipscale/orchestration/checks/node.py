"""Measurements of every node: matrix products, memory, all-reduce, and the file system.

They take some seconds, and find a node that would slow the whole run down or end it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flipscale.distributed.world import World
from flipscale.orchestration.checks import speeds
from flipscale.orchestration.checks.finding import Finding
from flipscale.orchestration.checks.links import least_all_reduce

_SLOWER_THAN_OTHERS = 0.5  # of the median node's value


@dataclass(frozen=True)
class _Measure:
    """A quantity that is measured on every node.

    Attributes:
        name: Its name in the table.
        unit: Its unit.
        limit: A value that a working node exceeds by far; a node that misses it is broken or misconfigured.
        fix: What to look at if a node fails.
        limit_is_most: Whether the limit is an upper one.
    """

    name: str
    unit: str
    limit: float
    fix: str
    limit_is_most: bool = False

    def fails(self, value: float) -> bool:
        return value > self.limit if self.limit_is_most else value < self.limit

    def describe(self, value: float) -> str:
        relation = "at most" if self.limit_is_most else "at least"
        return f"{value:.3g} {self.unit} ({relation} {self.limit:g})"


_PRODUCT_GPU = _Measure("matrix product", "TFLOP/s in bf16", 20.0, "look at the GPU's clocks and temperature")
_PRODUCT_CPU = _Measure("matrix product", "TFLOP/s in fp32", 0.001, "see what else uses the cores")
_MEMORY = _Measure("host memory", "GB/s copied", 0.5, "see what else uses the memory")
_REDUCE_GPU = _Measure(
    "all-reduce",
    "GB/s",
    1.0,
    "see with NCCL_DEBUG=INFO which links NCCL uses, and look at NCCL_IB_HCA and NCCL_SOCKET_IFNAME; if the "
    "cluster has no faster ones, set `network` in the site file",
)
_REDUCE_CPU = _Measure("all-reduce", "GB/s", 0.005, "look at GLOO_SOCKET_IFNAME and the network")
_FILE_WRITE = _Measure("file write", "MB/s with fsync", 5.0, "keep runs on a faster file system")
_SYNC = _Measure("fsync", "s", 5.0, "keep runs on a faster file system", limit_is_most=True)

_Value = float | str
"""A measured value, or a sentence that says why there is none."""
_Values = dict[str, _Value]
"""The values of one process, by the names of their measures."""


def measure_nodes(world: World, directory: Path) -> list[Finding]:
    """Measure all nodes; every process calls it and gets the same list, one finding per measure and node.

    A node's value is that of its slowest process. It is an error if it misses the stated limit, or half of
    the median of all nodes.

    Args:
        world: The processes of the run.
        directory: A directory to which the first process of each node writes 64 MiB, which it removes again.

    Raises:
        UserError: If a variable with a bandwidth of the site is not a positive number.
    """
    on_gpu = world.device.type == "cuda"
    product = _PRODUCT_GPU if on_gpu else _PRODUCT_CPU
    reduce = _reduce_of(world)

    values: _Values = {}
    _measure(values, product, lambda: speeds.matrix_product(world.device))
    _measure(values, _MEMORY, speeds.host_memory)
    if world.local_rank == 0:
        _measure(values, _FILE_WRITE, lambda: speeds.file_write(directory))
        _measure(values, _SYNC, lambda: speeds.file_sync(directory))
    if world.size > 1:
        world.sum([0])  # start together
        _measure(values, reduce, lambda: speeds.all_reduce(world))

    by_node: dict[str, list[_Values]] = {}
    for node, measured in world.gather((world.place.node, values)):
        by_node.setdefault(node, []).append(measured)

    findings = [
        finding
        for measure in (product, _MEMORY, reduce, _FILE_WRITE, _SYNC)
        for finding in _judge(measure, {node: _values_of(measure, parts) for node, parts in by_node.items()})
    ]
    if world.size == 1:
        findings.append(Finding("all-reduce", "skipped", "one process", "start it with torchrun or srun"))
    return findings


def _reduce_of(world: World) -> _Measure:
    """Return the measure of the all-reduce. Its limit is that of the process whose links are the slowest."""
    if world.device.type != "cuda":
        return _REDUCE_CPU

    gpu = torch.cuda.get_device_name(world.device)
    least = least_all_reduce(gpu, speeds.REDUCED_BYTES, world.size, world.local_size)
    return replace(_REDUCE_GPU, limit=round(min(world.gather(least)) / 1e9, 1))


def _measure(values: _Values, measure: _Measure, take: Callable[[], float]) -> None:
    """Take a measurement; a broken GPU or a full disk is a result, too."""
    try:
        values[measure.name] = take()
    except (RuntimeError, OSError) as error:
        values[measure.name] = (str(error).strip().splitlines() or [type(error).__name__])[0]


def _values_of(measure: _Measure, processes: Sequence[_Values]) -> list[_Value]:
    return [values[measure.name] for values in processes if measure.name in values]


def _judge(measure: _Measure, nodes: Mapping[str, Sequence[_Value]]) -> list[Finding]:
    """Return a finding for each node that has values of this measure, in the order of their names."""
    worst: dict[str, float] = {}
    findings: list[Finding] = []
    for node, values in nodes.items():
        errors = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if not isinstance(value, str)]
        if errors:
            findings.append(Finding(measure.name, "error", errors[0], measure.fix, node))
        elif numbers:
            worst[node] = max(numbers) if measure.limit_is_most else min(numbers)

    median = statistics.median(worst.values()) if worst else 0.0
    for node, value in worst.items():
        text = measure.describe(value)
        slow = not measure.limit_is_most and value < _SLOWER_THAN_OTHERS * median
        if slow:
            text += f"; the median node has {median:.3g}"

        if slow or measure.fails(value):
            findings.append(Finding(measure.name, "error", text, measure.fix, node))
        else:
            findings.append(Finding(measure.name, "ok", text, node=node))
    return sorted(findings, key=lambda finding: finding.node)
