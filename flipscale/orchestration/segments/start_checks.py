"""The checks of a start before its first step: do starts bring progress, and are the nodes fast enough?"""

from __future__ import annotations

from pathlib import Path

from flipscale.distributed.world import World
from flipscale.errors import RunError
from flipscale.runs.ledger import fruitless_segments, read_ledger

MOST_FRUITLESS = 3
"""Segments in a row that may end badly without any progress before the run is not started again."""


def check_progress(run: Path, since: float) -> None:
    """Check that the last segments did not all end without progress.

    Args:
        run: The run directory.
        since: Time from which segments count, in seconds since 1970.

    Raises:
        RunError: If the last `MOST_FRUITLESS` segments brought no progress: another would not either.
    """
    bad = fruitless_segments(read_ledger(run), since)
    if len(bad) < MOST_FRUITLESS:
        return

    reasons = ", ".join(line.reason for line in bad)
    raise RunError(
        f"the last {len(bad)} segments brought no progress ({reasons}; the last one: {bad[-1].detail}); "
        "fix the cause and run `flipscale submit` again",
        kind="no_progress",
    )


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
