"""`flipscale data audit`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from flipscale.cli.options import AsJson, Run
from flipscale.errors import RunError
from flipscale.terminal import print_json, say

if TYPE_CHECKING:
    from flipscale.runs.audit import AuditReport, Mark


def audit(run: Run, as_json: AsJson = False) -> None:
    """Prove from the run's own files that no sample was skipped or repeated; exit 1 if one was."""
    from flipscale.cli.data.cores import worker_count
    from flipscale.runs.audit import PROVES
    from flipscale.runs.audit import audit as audit_run
    from flipscale.runs.content_proof import PROVES as CONTENT_PROVES
    from flipscale.runs.directory import existing_run

    report = audit_run(existing_run(run), workers=worker_count())
    if as_json:
        print_json(asdict(report))
    else:
        _print_marks(report)

    for gap in report.gaps:
        say(f"not compared: {gap}", error=as_json)
    for contradiction in report.contradictions:
        say(f"contradiction: {contradiction}", error=as_json)

    if report.content == "different" and all(mark.recorded == mark.expected for mark in report.marks):
        raise RunError(
            f"{run} read other images or captions than those in its index (their checksums differ); see the "
            "marks above"
        )
    if any(not mark.proven for mark in report.marks):
        raise RunError(f"{run} did not read the samples that its order prescribes; see the marks above")
    if not report.proven:
        raise RunError(f"the files of {run} contradict each other, so that nothing is proven; see above")
    say(
        f"{report.samples_seen} samples seen ({report.epochs:.4g} epochs of {report.dataset_samples}): "
        f"0 repeated, 0 skipped; {report.unusable} unusable samples replaced at {report.replaced} positions\n"
        f"{PROVES}\n{CONTENT_PROVES[report.content]}",
        error=as_json,
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
            _content(mark),
        )
        for mark in report.marks
    ]
    print_table(("samples seen", "recorded by", "order digest", "recomputed", "", "content digest"), rows)
    say(f"compared as well: {report.metrics_lines} lines of metrics.jsonl")


def _content(mark: Mark) -> str:
    if not mark.content:
        return "-"
    if not mark.expected_content:
        return mark.content
    return f"{mark.content} {'equal' if mark.same_content else 'DIFFERENT'}"
