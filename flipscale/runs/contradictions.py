"""What the files of a run say against each other, and what cannot be compared because a file is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.data.shards.index import shard_name
from flipscale.data.shards.index_document import load_index
from flipscale.errors import UserError
from flipscale.runs.content_proof import in_contents, index_directory
from flipscale.runs.job_changes import check_same_job
from flipscale.runs.metrics import MetricsLine
from flipscale.runs.recorded_run import RecordedRun

_SAVED_ENDS = frozenset({"done", "stopped", "cancelled", "preempted", "timeout"})
"""Ends before which the run saved its last step."""


def find_contradictions(files: RecordedRun) -> Iterator[str]:
    """Yield a sentence about every two places of a run directory that contradict each other."""
    yield from _in_ledger(files)
    yield from _in_checkpoints(files)
    yield from _in_metrics(files)
    yield from _in_evaluations(files)
    yield from _in_quarantine(files)
    yield from _in_index(files)
    yield from in_contents(files)


def find_gaps(files: RecordedRun) -> Iterator[str]:
    """Yield a sentence about everything that is missing, so that it could not be compared."""
    if not files.metrics:
        yield "metrics.jsonl is missing or empty: its digests and rates could not be compared"
    for name in files.damaged:
        yield f"{name} has a damaged manifest: its digest and job could not be compared"
    if not index_directory(files).is_dir():
        yield f"{index_directory(files)} is not here: the names of the shards could not be compared with it"
    if not any(line.quarantined is not None for line in files.ledger):
        yield (
            "the ledger counts no unusable samples (an earlier version): a shortened list could not be "
            "noticed"
        )

    behind = [line.samples for line in files.metrics if line.samples > max(files.newest, files.ledger_end)]
    if behind:
        yield (
            f"metrics.jsonl continues to {behind[-1]} samples, which no checkpoint holds: they are "
            "not proven, "
            "and the next start trains them again"
        )


def _in_ledger(files: RecordedRun) -> Iterator[str]:
    for number, line in enumerate(files.ledger):
        if line.segment != number:
            yield (
                f"line {number + 1} of ledger.jsonl is segment {line.segment}, not {number}: a line is "
                "missing or doubled"
            )
            break

    place = 0
    phase_ends = {span.stop for span in files.budget.spans}
    for line in files.ledger:
        if line.samples_from != place:
            yield (
                f"segment {line.segment} of ledger.jsonl begins at {line.samples_from} samples, but "
                "the one before it "
                f"ends at {place}"
            )
        if line.samples_to < line.samples_from and line.reason != "rolled_back":
            yield f"segment {line.segment} of ledger.jsonl ends before it begins"
        # The last phase of an earlier job: phases may be added to a run that is done.
        if line.reason == "done" and line.samples_to not in phase_ends:
            yield (
                f"segment {line.segment} of ledger.jsonl is done at {line.samples_to} samples, where "
                "no phase "
                "of job.yaml ends"
            )
        place = line.samples_to

    under_way = files.open_segment
    if under_way is not None and under_way.samples_from != place:
        # The start that finds newer checkpoints damaged writes its line of a roll-back before it begins.
        yield f"segment.json begins at {under_way.samples_from} samples, but ledger.jsonl ends at {place}"
    if under_way is None and files.newest > place:
        yield (
            f"no line of ledger.jsonl accounts for the samples from {place} to {files.newest}, which are "
            "in a checkpoint"
        )


def _in_checkpoints(files: RecordedRun) -> Iterator[str]:
    if files.newest < files.ledger_end:
        yield (
            f"ledger.jsonl says that {files.ledger_end} samples were committed, but the newest whole "
            "checkpoint has "
            f"{files.newest or 'none'}"
        )

    for (samples, name), manifest in files.manifests.items():
        if manifest.progress.samples_seen != samples:
            yield f"the manifest of {name} is that of {manifest.progress.samples_seen} samples"
        try:
            saved = Job.model_validate(manifest.job)
            check_same_job(files.run.path, saved, files.job, samples)
        except UserError as error:
            yield f"job.yaml is not the job of {name}: {error}"
        except ValueError:
            yield f"the job in the manifest of {name} is not a job"


def _in_metrics(files: RecordedRun) -> Iterator[str]:
    for before, line in pairwise(files.metrics):
        if line.samples <= before.samples:
            yield f"metrics.jsonl repeats itself at {line.samples} samples"
            break

    for line in files.metrics:
        if not files.budget.is_boundary(line.samples) or line.samples == 0:
            continue  # the audit refuses it
        if line.step != files.budget.steps_done(line.samples):
            yield f"metrics.jsonl calls the step that ends at {line.samples} samples {line.step}"
            break
        if not _has_rate_of_job(files.budget, line):
            yield (
                f"metrics.jsonl has the learning rate {line.column('lr'):g} at {line.samples} "
                "samples, where the "
                "phases of job.yaml have another"
            )
            break

    end = _saved_end(files)
    trained = max((line.samples for line in files.metrics), default=0)
    if end is not None and trained > end:
        yield (
            f"metrics.jsonl has a step that ends at {trained} samples, but the last segment saved and "
            "ended at "
            f"{end}"
        )


def _saved_end(files: RecordedRun) -> int | None:
    """Return where the run ended, if its last segment saved its last step; None if it did not, or is alive.

    After a kill, metrics and evaluations may be ahead of the checkpoints until the next start.
    """
    if not files.ledger or files.open_segment is not None:
        return None
    last = files.ledger[-1]
    return last.samples_to + last.lost_samples if last.reason in _SAVED_ENDS else None


def _has_rate_of_job(budget: Budget, line: MetricsLine) -> bool:
    rate = line.column("lr")
    span = budget.span_at(line.samples - 1)
    batch = span.phase.batch_size
    start = span.start + (line.samples - span.start - 1) // batch * batch
    return math.isnan(rate) or math.isclose(rate, span.lr_at(start), rel_tol=1e-9, abs_tol=1e-15)


def _in_evaluations(files: RecordedRun) -> Iterator[str]:
    end = _saved_end(files)
    for evaluation in files.evaluations:
        if not files.budget.is_boundary(evaluation.samples_seen):
            yield (
                f"evaluations.jsonl has one at {evaluation.samples_seen} samples, where no step of the "
                "job ends"
            )
        elif end is not None and evaluation.samples_seen > end:
            yield f"evaluations.jsonl has one at {evaluation.samples_seen} samples, which no checkpoint holds"


def _in_quarantine(files: RecordedRun) -> Iterator[str]:
    """Compare the length of the list with what the ledger counted.

    Records are appended before the checkpoint of their step, so that a list may be longer, never shorter.
    """
    counted = max((line.quarantined or 0 for line in files.ledger), default=0)
    held = files.quarantined or 0
    if held < counted:
        state = "is missing" if files.quarantined is None else f"holds {held} records"
        yield (
            f"quarantine.jsonl {state}, but the ledger counted {counted} unusable samples, so that "
            "the order cannot "
            "be recomputed; restore the list, or make it again: `flipscale data check JOB --report "
            "DIR` writes "
            "DIR/quarantine.jsonl"
        )


def _in_index(files: RecordedRun) -> Iterator[str]:
    directory = index_directory(files)
    if not directory.is_dir():
        return

    try:
        index = load_index(directory)
    except UserError as error:
        yield f"{files.run.index.name} cannot be compared with the index of the shards: {error}"
        return

    shards = tuple((shard_name(shard.path), shard.samples) for shard in index.shards)
    if shards != files.identity.shards:
        yield f"index.json names other shards, or in another order, than the index in {directory}"
    elif files.identity.sources is None and index.fingerprint != files.identity.fingerprint:
        yield f"index.json has another fingerprint than the index in {directory}"
