"""The processes of a run: which one this is, on which device, and how they agree on small facts."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from flipscale.child_process import keep_connections_from_children
from flipscale.distributed.cores import share_of_cores, usable_cores
from flipscale.distributed.devices import check_gpus, gpu_id, own_device
from flipscale.distributed.interfaces import default_gloo_interface
from flipscale.distributed.pending_sum import PendingSum
from flipscale.distributed.placement import Placement
from flipscale.distributed.quiet_start import native_output_to_stderr
from flipscale.errors import RunError, StoppedEarly, UserError

T = TypeVar("T")

_dist: Any = dist  # the signatures of its collectives are partially unknown

_SHORTEST_WAIT = timedelta(minutes=30)
"""The shortest timeout of small collectives, in which processes wait while one lists or writes files."""

_OF_NCCL = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0"}
"""NCCL's own watchdog must not abort a process that has lost a peer: it first has the job started again.

The segment's watchdog and gloo notice such a loss. torchrun sets the first variable to 1 for its workers.
"""

_groups: list[dist.ProcessGroup | None] = []
"""The control group of this process, once it is made."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run. Collectives on CPU tensors run over gloo."""

    rank: int
    """Number of this process."""
    size: int
    """Processes of the run."""
    local_rank: int
    """Number of this process among those of its node."""
    local_size: int
    """Processes of the node."""
    device: torch.device
    """The device of this process."""
    place: Placement = field(default_factory=Placement)
    """The placement of this process, as its launcher gave it."""
    timeout: timedelta = _SHORTEST_WAIT
    """How long a process waits for the others in the collectives of its World."""
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """The cores for this process and its loader workers: its share of those that it may use."""

    @property
    def leads(self) -> bool:
        """Whether this is the leading process."""
        return self.rank == 0

    def gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """Return every process's value, in rank order. All processes call this method together.

        Args:
            value: A value that can be pickled.
            group: A group from `new_group`, which threads other than the main one must give.
        """
        if self.size == 1:
            return [value]

        values: list[Any] = [None] * self.size
        _dist.all_gather_object(values, value, group=group or self._control_group())
        return values

    def new_group(self) -> dist.ProcessGroup | None:
        """Make a further gloo group of all processes. All processes call this method together.

        Returns:
            The group, or None if there is one process.
        """
        if self.size == 1:
            return None

        with native_output_to_stderr():
            group: Any = _dist.new_group(backend="gloo", timeout=max(self.timeout, _SHORTEST_WAIT))
        assert isinstance(group, dist.ProcessGroup)
        return group

    def lead(self, work: Callable[[], T]) -> T:
        """Let the leading process do some work. All processes call this method together.

        Returns:
            The result of the work, on every process.

        Raises:
            UserError: On every process, if the work raises it.
            RunError: On every process, if the work raises it.
            StoppedEarly: On every process, if the work raises it.
        """
        if self.size == 1:
            return work()

        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = work()
            except (UserError, RunError, StoppedEarly) as error:
                outcome[1] = error

        _dist.broadcast_object_list(outcome, src=0, group=self._control_group())
        result, error = outcome
        if error is not None:
            raise error
        return result

    def together(self, work: Callable[[], T]) -> T:
        """Let every process do some work, since its node may not see what other nodes see.

        Returns:
            This process's own result.

        Raises:
            UserError: On every process, the first one that any of them raises.
        """
        results: list[T] = []
        problem: UserError | None = None
        try:
            results.append(work())
        except UserError as error:
            problem = error

        for other in self.gather(problem):
            if other is not None:
                raise other
        return results[0]

    def sum(self, numbers: list[int]) -> list[int]:
        """Sum int64 numbers over all processes, modulo 2**64, with one small collective on the CPU."""
        return self.start_sum(numbers).wait()

    def start_sum(self, numbers: list[int]) -> PendingSum:
        """Start a `sum`, and return at once. All processes call this method together.

        A sum that is under way takes its turn among the collectives of the control group: all processes call
        these in the same order.
        """
        total = torch.tensor(numbers, dtype=torch.int64)
        if self.size == 1:
            return PendingSum(total, None)

        return PendingSum(total, _dist.all_reduce(total, group=self._control_group(), async_op=True))

    def _control_group(self) -> dist.ProcessGroup | None:
        """Return a gloo group of its own: control traffic never mixes with the tensors of a training step."""
        if not _groups:
            _groups.append(self.new_group())
        return _groups[0]


def join_world(place: Placement, timeout: timedelta = timedelta(minutes=10)) -> World:
    """Join the processes that a launcher started with this one; without a launcher there are no others.

    Args:
        place: The placement of this process.
        timeout: How long processes wait for each other. The collectives of World wait 30 minutes or more.

    Raises:
        UserError: If a process does not see its GPU, or has that of another one.
    """
    device = own_device(place)
    _allow_many_open_files()

    if place.size > 1:
        # The others notice the end of this process by its connections, so loader workers must not hold them.
        keep_connections_from_children()
        default_gloo_interface()
        backend = "gloo"
        if device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl"
            for name, value in _OF_NCCL.items():
                os.environ.setdefault(name, value)
        options: dict[str, Any] = {"rank": place.rank, "world_size": place.size, "timeout": timeout}
        if place.rendezvous:
            options["store"] = _attempt_store(place, timeout)
        with native_output_to_stderr():
            dist.init_process_group(backend, **options)

    world = World(place.rank, place.size, place.local_rank, place.local_size, device, place, timeout)
    # The control group connects here, so that a start is complete or fails at one place.
    resources = world.gather((usable_cores(place), gpu_id(device)))
    check_gpus([gpu for _, gpu in resources])
    return replace(world, cores=share_of_cores(world.rank, [cores for cores, _ in resources]))


def leave_world() -> None:
    """Leave the processes of the run, if this process joined them."""
    if dist.is_initialized():
        _groups.clear()
        dist.destroy_process_group()
        keep_connections_from_children(keep=False)


def _allow_many_open_files() -> None:
    """Raise the soft limit of open files to the hard one.

    The soft one is usually 1,024. Each gloo group has a connection to every process of the run, and there are
    three groups: 771 connections with 256 processes.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _attempt_store(place: Placement, timeout: timedelta) -> Any:
    """Return the store in which the processes of this start find each other.

    Its keys carry the attempt, so that a process left over from an earlier start can never join.
    """
    host, _, port = place.rendezvous.rpartition(":")
    store = _dist.TCPStore(host, int(port), place.size, is_master=place.rank == 0, timeout=timeout)
    return _dist.PrefixStore(place.attempt, store)
