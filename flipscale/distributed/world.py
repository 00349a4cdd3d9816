"""The processes of a run: who they are, on which device, and how they agree on small facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from flipscale.distributed.placement import Placement
from flipscale.errors import RunError, UserError

T = TypeVar("T")

_SHORTEST_WAIT = timedelta(minutes=30)
"""Of the small collectives: the others wait in them while one process lists a set or writes a checkpoint."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run. Collectives on CPU tensors go over gloo."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    place: Placement = field(default_factory=Placement)
    """Where this process runs, as its launcher said."""
    timeout: timedelta = _SHORTEST_WAIT
    """How long a process waits for the others in the collectives of its World."""

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
        dist.all_gather_object(values, value, group=group or self._control_group())
        return values

    def new_group(self) -> dist.ProcessGroup | None:
        """A further gloo group of all processes, or None for one process; all call it together."""
        if self.size == 1:
            return None
        group = dist.new_group(backend="gloo", timeout=max(self.timeout, _SHORTEST_WAIT))
        assert isinstance(group, dist.ProcessGroup)
        return group

    def lead(self, work: Callable[[], T]) -> T:
        """Let the leading process do `work`; every process returns its result, or raises its
        UserError or RunError."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = work()
            except (UserError, RunError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self._control_group())
        result, error = outcome
        if error is not None:
            raise error
        return result

    def together(self, work: Callable[[], T]) -> T:
        """Let every process do `work`, since its node may not see what others see; all raise the first
        UserError of any of them."""
        done: list[T] = []
        problem: UserError | None = None
        try:
            done.append(work())
        except UserError as error:
            problem = error
        for found in self.gather(problem):
            if found is not None:
                raise found
        return done[0]

    def sum(self, numbers: list[int]) -> list[int]:
        """Sum int64 numbers over all processes, wrapping modulo 2**64; one small CPU collective."""
        if self.size == 1:
            return numbers
        total = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(total, group=self._control_group())
        return total.tolist()

    def _control_group(self) -> dist.ProcessGroup | None:
        """A gloo group of its own: control traffic never mixes with the tensors of a training step."""
        if not _groups:
            _groups.append(self.new_group())
        return _groups[0]


def join_world(place: Placement, timeout: timedelta = timedelta(minutes=10)) -> World:
    """Join the processes that a launcher started with this one; alone without a launcher.

    Args:
        timeout: how long processes wait for each other; those of World's own collectives 30 minutes or more.

    Raises UserError where more processes than GPUs were started on this machine.
    """
    if torch.cuda.is_available():
        if place.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{place.local_size} processes were started on a machine with {torch.cuda.device_count()} "
                "GPUs; start one process a GPU"
            )
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if place.size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        ranks = {"rank": place.rank, "world_size": place.size, "timeout": timeout}
        if place.rendezvous:
            dist.init_process_group(backend, store=_attempt_store(place, timeout), **ranks)
        else:
            dist.init_process_group(backend, **ranks)
    return World(place.rank, place.size, place.local_rank, place.local_size, device, place, timeout)


def _attempt_store(place: Placement, timeout: timedelta) -> dist.Store:
    """Where the processes of this start find each other.

    Its keys carry the attempt, so that a process left over from an earlier start can never join.
    """
    host, _, port = place.rendezvous.rpartition(":")
    store = dist.TCPStore(host, int(port), place.size, is_master=place.rank == 0, timeout=timeout)
    return dist.PrefixStore(place.attempt, store)


def leave_world() -> None:
    if dist.is_initialized():
        _groups.clear()
        dist.destroy_process_group()


_groups: list[dist.ProcessGroup | None] = []
