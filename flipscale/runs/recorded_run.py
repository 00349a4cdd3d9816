"""Everything that a run directory says about what was trained, read once for the audit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.data.quarantine import count_quarantine
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.evaluations import RecordedEvaluation, read_evaluations
from flipscale.runs.identity import DataIdentity, read_identity
from flipscale.runs.ledger import LedgerLine, read_ledger, read_open_segment
from flipscale.runs.manifest import Manifest, committed_checkpoints, read_manifest
from flipscale.runs.metrics import MetricsLine, read_metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedRun:
    """The records of a run.

    Attributes:
        run: The run.
        job: The job of its last start.
        budget: The budget of that job.
        identity: The training data.
        ledger: The closed segments, oldest first.
        open_segment: The segment under way, or that was killed; None if there is none.
        manifests: The committed checkpoints by samples seen and name, in this order.
        damaged: Names of the checkpoints whose manifests are damaged.
        metrics: The lines of metrics.jsonl.
        evaluations: The evaluations during training.
        quarantined: Number of records in the quarantine list; None if the list is missing.
    """

    run: RunDirectory
    job: Job
    budget: Budget
    identity: DataIdentity
    ledger: Sequence[LedgerLine]
    open_segment: LedgerLine | None
    manifests: Mapping[tuple[int, str], Manifest]
    damaged: Sequence[str]
    metrics: Sequence[MetricsLine]
    evaluations: Sequence[RecordedEvaluation]
    quarantined: int | None

    @property
    def ledger_end(self) -> int:
        """Samples that the ledger accounts for."""
        return self.ledger[-1].samples_to if self.ledger else 0

    @property
    def newest(self) -> int:
        """Samples of the newest whole checkpoint; 0 if there is none."""
        return max((samples for samples, _ in self.manifests), default=0)


def read_run(run: RunDirectory) -> RecordedRun:
    """Read the records of a run.

    Raises:
        UserError: If nothing was trained yet, or if a record is damaged.
    """
    if not run.index.exists() and not committed_checkpoints(run):
        raise UserError(f"{run.path} has no index.json, so nothing was trained in it yet; audit it later")

    job = recorded_job(run)
    identity = read_identity(run)

    # The open segment before the ledger: one that is closed in between is then in both, not in neither.
    open_segment = read_open_segment(run.path)
    ledger = read_ledger(run.path, required=("segment", "samples_from", "samples_to", "reason", "digest"))
    if open_segment is not None and ledger and open_segment.segment <= ledger[-1].segment:
        open_segment = None

    manifests: dict[tuple[int, str], Manifest] = {}
    damaged: list[str] = []
    for checkpoint in committed_checkpoints(run):
        try:
            manifests[checkpoint.samples, checkpoint.path.name] = read_manifest(checkpoint.path)
        except (OSError, ValueError):
            _log.warning("%s is damaged, so that it is left out", checkpoint.manifest)
            damaged.append(checkpoint.path.name)

    return RecordedRun(
        run=run,
        job=job,
        budget=Budget.of(job.phases, job.data.lanes),
        identity=identity,
        ledger=ledger,
        open_segment=open_segment,
        manifests=dict(sorted(manifests.items())),
        damaged=damaged,
        metrics=read_metrics(run.path),
        evaluations=read_evaluations(run.path),
        quarantined=count_quarantine(run.quarantine),
    )
