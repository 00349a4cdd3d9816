"""The cores of a machine, shared among the processes of a run that may use them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from flipscale.distributed.placement import Placement
from flipscale.processes import own_mark


@dataclass(frozen=True)
class UsableCores:
    """The cores that one process may use.

    Attributes:
        machine: What identifies the machine: the id of its boot, or the node's name if that is unknown.
        numbers: The numbers of the cores.
    """

    machine: str
    numbers: frozenset[int]


def usable_cores(place: Placement) -> UsableCores:
    """Return the cores that this process may use, by its affinity."""
    return UsableCores(own_mark().boot or place.node, frozenset(os.sched_getaffinity(0)))


def share_of_cores(rank: int, cores: Sequence[UsableCores]) -> int:
    """Return the number of cores that one process should use.

    A core that n processes of the run may use counts as 1/n for each of them. It does not matter whether
    srun has bound each process to cores of its own, as Slurm's task/affinity does, or all may use all.

    Args:
        rank: The rank of the process.
        cores: The cores that each process of the run may use, by rank.

    Returns:
        The sum, rounded down; at least 1.
    """
    own = cores[rank]
    neighbours = [other.numbers for other in cores if other.machine == own.machine]
    shares = (Fraction(1, sum(core in numbers for numbers in neighbours)) for core in own.numbers)
    return max(1, int(sum(shares)))
