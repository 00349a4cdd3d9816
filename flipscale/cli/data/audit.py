"""`flipscale data audit`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from flipscale.cli.options import AsJson, Run
from flipscale.errors import RunError

if TYPE_CHECKING:
    from flipscale.runs.audit import AuditReport


def audit(run: Run, as_json: AsJson = False) -> None:
    """Prove from the run's own files that no sample was skipped or repeated; exit 1 if one was."""
    from flipscale.cli.data.cores import worker_count
    from flipscale.runs.audit import PROVES
    from flipscale.runs.audit import audit as audit_run
    from flipscale.runs.directory import existing_run

    report = audit_run(existing_run(run), workers=worker_count())
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _print_marks(report)

    sentences = sys.stderr if as_json else sys.stdout
    for gap in report.gaps:
        print(f"not compared: {gap}", file=sentences)
    for contradiction in report.contradictions:
        print(f"contradiction: {contradiction}", file=sentences)

    if any(mark.recorded != mark.expected for mark in report.marks):
        raise RunError(f"{run} did not read the samples that its order prescribes; see the marks above")
    if not report.proven:
        raise RunError(f"the files of {run} contradict each other, so that nothing is proven; see above")
    print(
        f"{report.samples_seen} samples seen ({report.epochs:.4g} epochs of {report.dataset_samples}): "
        f"0 repeated, 0 skipped; {report.unusable} unusable samples replaced at {report.replaced} positions\n"
        f"{PROVES}",
        file=sentences,
    )


def _print_marks(report: AuditReport) -> None:
    from flipscale.cli.console import print_table

    rows = [
        (
            str(mark.samples_seen),
            mark.source,
            mark.recorded,
            mark.expected,
            "equal" if mark.recorded == mark.expected else "DIFFERENT",
        )
        for mark in report.marks
    ]
    print_table(("samples seen", "recorded by", "order digest", "recomputed", ""), rows)
    print(f"compared as well: {report.metrics_lines} lines of metrics.jsonl")
