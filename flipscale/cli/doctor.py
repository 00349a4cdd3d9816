"""`flipscale doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flipscale.cli.console import print_table
from flipscale.errors import RunError, UserError
from flipscale.orchestration.checks.finding import Finding


def examine(directory: Path, *, node: bool, as_json: bool) -> None:
    """Print the checks; raises RunError where one is a problem."""
    if not directory.is_dir():
        raise UserError(f"--directory {directory} is no directory; name one where runs are to be kept")
    if node:
        from flipscale.distributed.placement import read_placement
        from flipscale.distributed.world import join_world, leave_world
        from flipscale.orchestration.checks.node import measure_nodes

        world = join_world(read_placement())
        try:
            checks = measure_nodes(world, directory)
        finally:
            leave_world()
        if not world.leads:
            return
    else:
        from flipscale.orchestration.checks.machine import check_environment

        checks = check_environment(directory)
    _show(checks, as_json)
    bad = [check for check in checks if check.level == "error"]
    if bad:
        names = [f"{check.name} on {check.node}" if check.node else check.name for check in bad]
        raise RunError(f"{len(bad)} of {len(checks)} checks failed: {', '.join(names)}")


def _show(checks: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_record(check) for check in checks], indent=2))
        return
    nodes = any(check.node for check in checks)
    headings = ["check", "node", "", "found", "what to do"]
    rows = [[check.name, check.node, _outcome(check), check.text, check.fix] for check in checks]
    if not nodes:
        headings, rows = [h for h in headings if h != "node"], [row[:1] + row[2:] for row in rows]
    print_table(headings, rows)


def _record(finding: Finding) -> dict[str, str]:
    """Return a finding by the keys of `doctor --json`."""
    return {
        "name": finding.name,
        "outcome": _outcome(finding),
        "found": finding.text,
        "mend": finding.fix,
        "node": finding.node,
    }


def _outcome(finding: Finding) -> str:
    return "problem" if finding.level == "error" else finding.level
