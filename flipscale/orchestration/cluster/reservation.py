"""A run directory that is made ready for a job, while other submissions of the run wait outside."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from shlex import quote

from flipscale.config import Job
from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.orchestration.cluster.submission import check_work_left, living_jobs, logs
from flipscale.runs.commit_order import last_commit
from flipscale.runs.directory import RunDirectory, check_belongs, prepare
from flipscale.runs.lost_checkpoints import check_not_lost

LOCK = "submit.lock"
TOKEN = "token"
"""The file by which a node sees that it shares the run directory."""


@contextmanager
def reserved(
    run: RunDirectory, job: Job, dependency: str | None, *, from_zero: bool = False
) -> Generator[None]:
    """Prepare the run directory, and keep other submissions of the run out while the context is open.

    A submission that is refused leaves nothing of a new run behind, and no request to begin at zero.
    """
    new = not run.path.exists()
    if not run.job.exists():
        prepare(run, job, 0)  # makes the directory, unless it holds something else

    try:
        with _submit_lock(run):
            _make_ready(run, job, dependency, from_zero=from_zero)
            yield
    except UserError:
        if from_zero:
            run.forget_zero_request()
        if new:
            _remove_unsubmitted(run)
        raise


def check_resumable(run: RunDirectory, job: Job, *, from_zero: bool) -> None:
    """Check that a run has work left, a checkpoint if it ever had one, and no other job.

    Raises:
        UserError: If the budget is spent, or the checkpoints are lost and `from_zero` is not set, or the
            directory belongs to another job or holds something else.
        StoppedEarly: If the storage does not answer.
    """
    check_work_left(run, job)
    if run.job.exists() and not from_zero:
        check_not_lost(run)
    check_belongs(run, job, *last_commit(run))


def _make_ready(run: RunDirectory, job: Job, dependency: str | None, *, from_zero: bool) -> None:
    """Check that the run may be submitted, and write what its job needs to start."""
    if dependency is None:
        check_work_left(run, job)
        _check_checkpoints(run, from_zero=from_zero)
    for other in living_jobs(run):
        if other.job_id != dependency:
            raise UserError(
                f"job {other.job_id} of {run.path} is queued or running already; look with `flipscale "
                f"status {quote(str(run.path))}`, or end it first with `flipscale cancel "
                f"{quote(str(run.path))}`"
            )

    prepare(run, job, *last_commit(run))
    logs(run).mkdir(exist_ok=True)
    if not (run.path / TOKEN).exists():
        write_durably(run.path / TOKEN, "A node that does not see this file shares no run with us.\n")
    if dependency is None:
        run.stop_file.unlink(missing_ok=True)  # whoever submits a run wants it to continue


def _check_checkpoints(run: RunDirectory, *, from_zero: bool) -> None:
    """Check that the job will find a checkpoint if there was one; else it begins at zero only if asked."""
    if not from_zero:
        check_not_lost(run)
        return

    from flipscale.runs.resume_point import request_zero

    request_zero(run)


def _remove_unsubmitted(run: RunDirectory) -> None:
    """Remove a run directory that this submission made, unless anything else is in it."""
    for file in (run.job, run.path / TOKEN, run.path / LOCK):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        for directory in (logs(run), run.checkpoints, run.path):
            if directory.exists():
                directory.rmdir()


@contextmanager
def _submit_lock(run: RunDirectory) -> Generator[None]:
    descriptor = os.open(run.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another submission of {run.path} is in progress; wait until it has ended"
            ) from None
        yield
    finally:
        os.close(descriptor)
