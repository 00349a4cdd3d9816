"""The nodes that a run leaves out: those that two of its segments blame, as far as the job still fits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.allocation import Allocation, resolve_allocation
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.killed_segment import suspects_without_a_line
from flipscale.runs.ledger import read_ledger
from flipscale.slurm import SlurmError, exclude_nodes, expand_node_list, is_node_name, read_nodes

_BLAMED_TWICE = 2
_ATTEMPTS = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlamedNodes:
    """The nodes that at least two segments blame for their end.

    Attributes:
        left_out: Those that the job does without.
        needed: Those that it may use nevertheless: without them it could not start.
    """

    left_out: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


def blamed_nodes(runs: Sequence[RunDirectory], site: Site, allocation: Allocation) -> BlamedNodes:
    """Return the nodes that the segments of some runs blame.

    A run whose nodes are all blamed must not wait for other nodes for ever. Nodes are therefore left out only
    if as many remain as the job requests, the most blamed first, and none if Slurm does not list its nodes.

    Args:
        runs: The runs; each counts by itself.
        site: The cluster. With `exclude_blamed: false` no node is left out.
        allocation: The resources of the job.

    Raises:
        UserError: If a ledger cannot be read.
    """
    blamed: Counter[str] = Counter()
    for run in runs:
        lines = read_ledger(run.path)
        suspects = [*(line.suspects for line in lines), suspects_without_a_line(run.path, lines)]
        segments = Counter(node for blame in suspects for node in set(blame))
        for node, times in segments.items():
            # The ledger may be anybody's: what is not the name of a node must not reach the batch script.
            if times >= _BLAMED_TWICE and is_node_name(node):
                blamed[node] = max(blamed[node], times)
    if not blamed:
        return BlamedNodes()

    room, present = _room(site, allocation)
    worst = [node for node, _ in sorted(blamed.items(), key=lambda item: (-item[1], item[0]))]
    known = [node for node in worst if node in present]
    left_out = known[: max(0, room)] if site.exclude_blamed else []
    return BlamedNodes(tuple(sorted(left_out)), tuple(sorted(set(known) - set(left_out))))


def avoidance(run: RunDirectory, site: Site, job_id: str) -> Callable[[], None]:
    """Return the act by which a job of a run avoids the blamed nodes once it waits again.

    The act never raises: without Slurm's answer the next start may use the nodes again.

    Args:
        run: The run.
        site: The cluster.
        job_id: The id of the job, which is about to be requeued.
    """
    try:
        blamed = blamed_nodes([run], site, resolve_allocation(recorded_job(run), site)).left_out
    except UserError as error:
        _log.warning("the next start may use a blamed node again: %s", error)
        blamed = ()

    def avoid() -> None:
        # Slurm's first signal to this job may end the client, too.
        for _ in range(_ATTEMPTS):
            try:
                exclude_nodes(job_id, [*site.exclude, *blamed])
                _log.info("the next start avoids %s", ", ".join(blamed))
                return
            except (SlurmError, UserError) as error:
                _log.warning("the next start may use %s again: %s", ", ".join(blamed), error)

    return avoid if blamed else lambda: None


def _room(site: Site, allocation: Allocation) -> tuple[int, set[str]]:
    """Return how many nodes the job can do without, and the nodes of the partition that it may use."""
    try:
        present = set(read_nodes(site.partition))
        if site.exclude:
            present -= set(expand_node_list(",".join(site.exclude)))
    except (SlurmError, UserError):
        return 0, set()
    return len(present) - allocation.nodes, present
