"""The checkpoint from which a start resumes, and the refusal to begin at zero without being asked."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flipscale.errors import UserError
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.job_changes import check_same_job
from flipscale.runs.ledger import read_ledger, read_open_segment
from flipscale.runs.manifest import LATEST, looks_like_a_checkpoint, read_latest
from flipscale.runs.storage import read_patiently

_log = logging.getLogger(__name__)


def find_resume_point(run: RunDirectory, *, from_zero: bool = False) -> Checkpoint | None:
    """Return the checkpoint from which a start of the run resumes; None if it begins at zero.

    Nothing in the run changes, except that `from_zero` renames what is left of checkpoints.

    Args:
        run: The run, which may not exist yet.
        from_zero: Whether a person allows that the run begins at zero though its checkpoints are lost.

    Raises:
        UserError: If samples were committed and no checkpoint can be read, unless `from_zero` is set; or if
            it is set and a checkpoint is whole.
        StoppedEarly: If the storage does not answer.
    """
    newest = checkpoint.find(run.checkpoints)
    if newest is not None and from_zero:
        raise UserError(
            f"--from-zero is for runs whose checkpoints are lost, and {newest.path} is whole; leave it "
            "out to resume, or set another `output` to begin a new run"
        )
    if newest is not None:
        return newest

    lost = read_patiently(lambda: _committed_before(run), run.path)
    if lost and not from_zero:
        raise UserError(
            f"{lost}, and no checkpoint in {run.checkpoints} can be read; bring the checkpoints back (is the "
            "file system mounted?), or add --from-zero to train all samples again"
        )
    if from_zero:
        _set_aside(run.checkpoints)
    return None


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


def _committed_before(run: RunDirectory) -> str:
    """Return how the run shows that it had a checkpoint; an empty string if it does not."""
    lines = read_ledger(run.path)
    if lines and lines[-1].samples_to:
        return f"{run.ledger} says that {lines[-1].samples_to} samples were trained"

    names = os.listdir(run.checkpoints) if run.checkpoints.is_dir() else []
    if remains := sorted(name for name in names if looks_like_a_checkpoint(name)):
        return f"{run.checkpoints / remains[-1]} was a checkpoint"
    if LATEST in names:
        return f"{run.checkpoints / LATEST} names {read_latest(run.checkpoints)[:80]!r}"

    # A first segment that was killed has no line yet, but notes its checkpoints.
    segment = read_open_segment(run.path)
    if segment is not None and segment.samples_to:
        return f"{run.open_segment} says that {segment.samples_to} samples were trained"

    # A start makes the directory before it opens its segment.
    if run.open_segment.exists() and not run.checkpoints.is_dir():
        return f"{run.open_segment} says that training had begun"
    return ""


def _set_aside(root: Path) -> None:
    """Rename damaged checkpoints, so that they neither count nor are deleted.

    Raises:
        UserError: If they cannot be renamed.
    """
    try:
        names = os.listdir(root) if root.is_dir() else []
        for name in sorted(names):
            if looks_like_a_checkpoint(name):
                aside = _free_name(root / f"lost_{name}")
                (root / name).rename(aside)
                _log.warning("%s is now %s, and training begins at zero", root / name, aside)
        (root / LATEST).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{root} cannot be written ({error.strerror}); allow it, or set another `output`"
        ) from None


def _free_name(path: Path) -> Path:
    number = 1
    free = path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
