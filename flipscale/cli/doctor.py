"""`flipscale doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from flipscale.cli.options import AsJson
from flipscale.errors import RunError, UserError
from flipscale.terminal import print_json

if TYPE_CHECKING:
    from flipscale.orchestration.checks.finding import Finding


class _Record(TypedDict):
    """A finding with the keys of `doctor --json`, which stay as scripts know them."""

    name: str
    outcome: str
    found: str
    mend: str
    node: str


def doctor(
    node: Annotated[
        bool, typer.Option("--node", help="Measure speeds, also of many nodes (torchrun, srun).")
    ] = False,
    directory: Annotated[Path, typer.Option(help="Where runs are to be kept.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Check this machine's software, limits and Slurm, or its speed; exit 1 if a check fails."""
    directory = directory.resolve()
    if not directory.is_dir():
        raise UserError(f"--directory {directory} is not a directory; name one where runs are to be kept")

    checks = _measured_nodes(directory) if node else _machine(directory)
    if checks is None:
        return

    _print(checks, as_json)
    bad = [check for check in checks if check.level == "error"]
    if bad:
        names = [f"{check.name} on {check.node}" if check.node else check.name for check in bad]
        raise RunError(f"{len(bad)} of {len(checks)} checks failed: {', '.join(names)}")


def _machine(directory: Path) -> list[Finding]:
    from flipscale.orchestration.checks.machine import check_environment

    return check_environment(directory)


def _measured_nodes(directory: Path) -> list[Finding] | None:
    """Measure all nodes; returns None on all but the leading process."""
    from flipscale.distributed.placement import read_placement
    from flipscale.distributed.world import join_world, leave_world
    from flipscale.orchestration.checks.node import measure_nodes

    world = join_world(read_placement())
    try:
        checks = measure_nodes(world, directory)
    finally:
        leave_world()

    return checks if world.leads else None


def _print(checks: Sequence[Finding], as_json: bool) -> None:
    from flipscale.cli.console import print_table

    if as_json:
        print_json([_record(check) for check in checks])
        return

    headings = ["check", "node", "", "found", "what to do"]
    rows = [[check.name, check.node, _outcome(check), check.text, check.fix] for check in checks]
    if not any(check.node for check in checks):
        headings = headings[:1] + headings[2:]
        rows = [row[:1] + row[2:] for row in rows]
    print_table(headings, rows)


def _record(finding: Finding) -> _Record:
    return _Record(
        name=finding.name,
        outcome=_outcome(finding),
        found=finding.text,
        mend=finding.fix,
        node=finding.node,
    )


def _outcome(finding: Finding) -> str:
    return "problem" if finding.level == "error" else finding.level
