"""The checkpoint from which a start resumes, and the refusal to begin at zero without being asked."""

from __future__ import annotations

import logging
from typing import NoReturn

from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.job_changes import check_same_job
from flipscale.runs.lost_checkpoints import refuse_to_lose, set_aside_remains

_log = logging.getLogger(__name__)


def find_resume_point(run: RunDirectory, *, from_zero: bool = False) -> Checkpoint | None:
    """Return the checkpoint from which a start of the run resumes; None if it begins at zero.

    Nothing in the run changes, except that a start at zero renames what is left of lost checkpoints.

    Args:
        run: The run, which may not exist yet.
        from_zero: Whether a person allows that the run begins at zero though its checkpoints are lost. The
            file `RunDirectory.zero_file` allows it as well.

    Raises:
        UserError: If samples were committed and no checkpoint can be read, unless a start at zero is
            allowed; or if `from_zero` is set and a checkpoint is whole.
        StoppedEarly: If the storage does not answer.
    """
    newest = checkpoint.find(run.checkpoints)
    if newest is not None:
        if from_zero:
            _refuse_to_give_up(newest)
        if run.zero_file.exists():
            _log.warning("%s does not count: %s is whole", run.zero_file, newest.path)
        return newest

    if not from_zero and not run.zero_file.exists():
        refuse_to_lose(run)
        return None

    set_aside_remains(run.checkpoints)
    return None


def request_zero(run: RunDirectory) -> None:
    """Allow the next start of a run to begin at zero though its checkpoints are lost.

    Raises:
        UserError: If a checkpoint is whole.
        StoppedEarly: If the storage does not answer.
        OSError: If the run directory cannot be written.
    """
    newest = checkpoint.find(run.checkpoints)
    if newest is not None:
        _refuse_to_give_up(newest)
    write_durably(run.zero_file, "The next start may begin at zero: its checkpoints are lost.\n")


def find_trained(run: RunDirectory) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run, for those who only read it; None if there is none.

    Raises:
        UserError: If it is not of this run: job.yaml and the job in its manifest differ in more than what may
            change.
        StoppedEarly: If the storage does not answer.
    """
    newest = checkpoint.find(run.checkpoints)
    if newest is not None:
        check_same_job(run.path, newest.saved_job(), recorded_job(run), newest.progress.samples_seen)
    return newest


def _refuse_to_give_up(newest: Checkpoint) -> NoReturn:
    raise UserError(
        f"--from-zero is for runs whose checkpoints are lost, and {newest.path} is whole; leave it "
        "out to resume, or set another `output` to begin a new run"
    )
