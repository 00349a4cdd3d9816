"""The state of a run in one word, and what comes next in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from flipscale.formatting import format_duration
from flipscale.orchestration.status.history import SegmentStatus, needs_a_person
from flipscale.orchestration.status.liveness import UNKNOWN, JobStatus, ProcessStatus, StartState

RunState = Literal[
    "new",  # never started
    "queued",  # Slurm will start it
    "starting",
    "training",
    "saving",
    "stopping",  # a person requested it
    "failing",  # a process failed; the others are ending
    "ending",  # its processes have ended, or Slurm is ending them
    "silent",  # its job or processes exist, but give no sign of life
    "lost",  # a segment is open, and nothing is alive
    "interrupted",  # ended by the cluster, without a job in the queue
    "stopped",  # a person stopped it
    "failed",  # a fault has to be fixed
    "done",
]
_ALIVE: tuple[RunState, ...] = (
    *("queued", "starting", "training", "saving", "stopping", "failing", "ending", "silent"),
)
_LEAVING = "COMPLETING"  # Slurm's state of a job that ends
_HELD = ("JobHeldUser", "JobHeldAdmin", "job_requeued_in_held_state", "launch_failed_requeued_held")


@dataclass(frozen=True)
class Evidence:
    """The facts from which the outlook follows."""

    run: Path
    spent: bool  # a committed checkpoint holds the whole budget
    saved: bool  # there is a committed checkpoint
    jobs: Sequence[JobStatus]
    processes: Sequence[ProcessStatus]  # of the newest start
    segments: Sequence[SegmentStatus]
    open_segment: bool  # a segment has begun and was not closed
    start: StartState  # what Slurm says about the start that gave the last signs of life
    trained: bool  # the open segment has written metrics; heartbeats come only every few seconds
    moving: bool  # the run's files changed a moment ago
    stop_requested: bool
    submitted: bool  # `flipscale submit` started it at least once

    @property
    def name(self) -> str:
        """The path of the run, quoted for a shell."""
        return quote(str(self.run))


def continues_by_itself(state: RunState) -> bool:
    """Return whether the run will change without a person's help."""
    return state in _ALIVE


def outlook(evidence: Evidence) -> tuple[RunState, str]:
    """Return the state of a run, and one line that says what happens next or has to be done."""
    state = _state(evidence)
    return state, _next(state, evidence)


def failures(processes: Sequence[ProcessStatus]) -> list[ProcessStatus]:
    """Return the processes that failed for a reason of their own; if none did, those that lost a peer."""
    failed = [process for process in processes if process.state == "failed"]
    return [process for process in failed if process.kind != "lost_process"] or failed


def _state(evidence: Evidence) -> RunState:
    working = [job for job in evidence.jobs if job.live and not job.waits]
    at_work = bool(working)
    alive = any(process.alive for process in evidence.processes)
    unheard = not evidence.processes and evidence.open_segment and evidence.moving
    unheard = unheard and evidence.start != "over"

    if not (at_work or alive or unheard):
        return "queued" if any(job.waits for job in evidence.jobs) else _resting(evidence)
    if evidence.spent and not alive:
        return "done"  # its job is only exiting
    if evidence.stop_requested:
        return "stopping"
    if at_work and all(job.state == _LEAVING for job in working):
        return "ending"
    if evidence.start == "over":
        return "starting"  # again: the processes and the open segment are those of the start before
    if evidence.open_segment and any(process.state == "failed" for process in evidence.processes):
        return "failing"
    if not evidence.processes:
        if unheard:
            return "training"
        return "silent" if evidence.open_segment else "starting"
    if all(process.ended for process in evidence.processes):
        # Unless Slurm says that they are of this start, they are those of the start before.
        return "ending" if evidence.start == "current" else "starting"
    if not alive:
        return "silent"

    states = {process.state for process in evidence.processes if process.alive}
    if states == {"starting"} and not evidence.trained:
        return "starting"
    return "saving" if "saving" in states else "training"


def _resting(evidence: Evidence) -> RunState:
    if evidence.spent:
        return "done"
    if evidence.open_segment:
        return "lost"
    if not evidence.segments:
        if failures(evidence.processes):
            return "failed"
        return "interrupted" if evidence.submitted else "new"

    reason = evidence.segments[-1].reason
    if reason in ("stopped", "cancelled"):
        return "stopped"
    return "failed" if needs_a_person(reason) and reason != "done" else "interrupted"


def _next(state: RunState, evidence: Evidence) -> str:
    again = "`flipscale submit JOB`" if evidence.submitted else "`flipscale train JOB`"
    if evidence.stop_requested and not evidence.submitted and not continues_by_itself(state):
        # `flipscale submit` removes the file by itself.
        again = f"`rm {quote(str(evidence.run / 'STOP'))}` and {again}"

    silent = [process for process in evidence.processes if process.silent]
    last = evidence.segments[-1] if evidence.segments else None

    if state == "done":
        leaving = [f"job {job.job_id} ({job.state})" for job in evidence.jobs if job.live]
        rest = f"; {', '.join(leaving)} has yet to leave its nodes" if leaving else ""
        return f"done: `flipscale export {evidence.name} OUT`{rest}"
    if state == "new":
        return "not started yet: `flipscale submit JOB` or `flipscale train JOB`"
    if state == "queued":
        return _queued(next(job for job in evidence.jobs if job.waits), evidence)
    if state == "starting":
        return "nothing to do: it is starting"
    if state in ("training", "saving"):
        if not silent:
            return f"nothing to do: it is {state}"
        return f"{_names(silent)}; if that lasts, the watchdog ends the segment, and the run is started again"
    if state == "stopping":
        return f"stopping on request: it saves and ends; then {again} resumes it"
    if state == "failing":
        return f"a process failed ({_error(evidence)}); the others are ending"
    if state == "ending":
        return "nothing to do: its job is ending; ask again in a moment whether it starts again"
    if state == "silent":
        what = _names(silent) if silent else "its processes give no sign of life"
        return (
            f"{what}; the watchdog ends a hung segment; if nothing changes, `flipscale cancel "
            f"{evidence.name}`"
        )
    if state in ("lost", "interrupted") and any(job.state == UNKNOWN for job in evidence.jobs):
        return "Slurm could not be asked whether a job of the run is queued or running; ask again"
    if state == "lost":
        return f"{_end(evidence)}; {again} resumes it from the last checkpoint"
    if state == "stopped":
        return f"it was {last.reason if last else 'stopped'}; {again} resumes it"
    if state == "failed":
        return f"it ended with an error: {_error(evidence)}; fix it, and {again} resumes it"
    if last is None:
        return (
            f"its job ended ({evidence.jobs[0].state if evidence.jobs else 'gone'}) before training began; "
            + (f"read {evidence.run / 'logs'}, then {again}")
        )
    return _interrupted(last, again, evidence)


def _interrupted(last: SegmentStatus, again: str, evidence: Evidence) -> str:
    if last.reason == "done" and not evidence.saved:
        return f"it was done, and its checkpoints are lost: bring them back, or {again} with --from-zero"
    why = "more phases were added" if last.reason == "done" else f"its last segment ended ({last.reason})"
    return f"{why} and no job of the run is in the queue; {again} resumes it"


def _queued(job: JobStatus, evidence: Evidence) -> str:
    why = f" ({job.reason})" if job.reason and job.reason != "None" else ""
    if job.reason in _HELD or job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"):
        return f"job {job.job_id} is held{why or f' ({job.state})'}: `scontrol release {job.job_id}`"
    if job.reason == "DependencyNeverSatisfied":
        return f"job {job.job_id} can never start{why}: `flipscale cancel {evidence.name}`, then submit again"
    if evidence.stop_requested:
        return f"a stop is requested: job {job.job_id} will end as soon as it starts"
    if job.reason == "BeginTime":
        return f"nothing to do: requeued; Slurm holds it for about two minutes{why}"
    return f"waiting in the queue{why}"


def _end(evidence: Evidence) -> str:
    if failures(evidence.processes):
        return f"it failed ({_error(evidence)})"
    return "its processes ended without a message"


def _error(evidence: Evidence) -> str:
    """Return the last line of the error."""
    failed = failures(evidence.processes)
    last = evidence.segments[-1] if evidence.segments else None
    if last is not None and last.detail and not (evidence.open_segment and failed):
        return last.detail.rstrip(". ")
    return (failed[0].message.rstrip(". ") if failed else "") or "it left no message"


def _names(processes: Sequence[ProcessStatus]) -> str:
    shown = [f"{process.rank} ({process.node})" for process in processes[:4]]
    more = f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    which = f"rank{'s' if len(processes) > 1 else ''} {', '.join(shown)}{more}"
    if all(process.gone for process in processes):
        return f"{which} {'are' if len(processes) > 1 else 'is'} gone"
    age = format_duration(max(process.age_seconds for process in processes))
    return f"{which} gave no sign of life for {age}"
