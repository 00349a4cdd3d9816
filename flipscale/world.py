"""The processes of a run: who they are, on which device, and how they agree on small facts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from flipscale.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all processes of the run. Collectives on CPU tensors go over gloo."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """Return every process's `value`, in rank order; all processes call it together.

        Threads other than the main one bring a `group` of their own (see `new_group`).
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group or _control_group())
        return values

    def new_group(self) -> dist.ProcessGroup | None:
        """A further gloo group of all processes, or None for one process; all call it together."""
        if self.size == 1:
            return None
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        return group

    def lead(self, work: Callable[[], T]) -> T:
        """Let the leading process do `work`; every process returns its result or raises its UserError."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=_control_group())
        result, error = outcome
        if error is not None:
            raise error
        return result

    def sum(self, numbers: list[int]) -> list[int]:
        """Sum int64 numbers over all processes, wrapping modulo 2**64; one small CPU collective."""
        if self.size == 1:
            return numbers
        total = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(total, group=_control_group())
        return total.tolist()


def planned_world_size() -> int:
    """The number of processes that the launcher starts, known before any of them talks to another."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join_world(timeout: timedelta = timedelta(minutes=10)) -> World:
    """Join the process group that torchrun or srun described in the environment; alone without either.

    Raises UserError where more processes than GPUs were started on this machine.
    """
    environment = os.environ
    rank = int(environment.get("RANK", 0))
    size = planned_world_size()
    local_rank = int(environment.get("LOCAL_RANK", 0))
    local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{local_size} processes were started on a machine with {torch.cuda.device_count()} GPUs; "
                "start one process a GPU"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout)
    return World(rank, size, local_rank, local_size, device)


def leave_world() -> None:
    if dist.is_initialized():
        _groups.clear()
        dist.destroy_process_group()


_groups: list[dist.ProcessGroup] = []


def _control_group() -> dist.ProcessGroup:
    """A gloo group of its own, so that control traffic never mixes with the tensors of a training step."""
    if not _groups:
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        _groups.append(group)
    return _groups[0]
