"""A run that had checkpoints and has none: how that shows, and what is left of them.

This module does not import torch, so that `flipscale submit` is quick.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger, read_open_segment
from flipscale.runs.manifest import LATEST, committed_checkpoints, looks_like_a_checkpoint, read_latest
from flipscale.runs.storage import read_patiently

_log = logging.getLogger(__name__)


def refuse_to_lose(run: RunDirectory) -> None:
    """Check that a run which has no checkpoint to resume from never had one.

    Raises:
        UserError: If it had one.
        StoppedEarly: If the storage does not answer.
    """
    lost = read_patiently(lambda: _committed_before(run), run.path)
    if lost:
        raise UserError(
            f"{lost}, and no checkpoint in {run.checkpoints} can be read; bring the checkpoints back (is the "
            "file system mounted?), or add --from-zero to train all samples again"
        )


def check_not_lost(run: RunDirectory) -> None:
    """Check that a run still has a checkpoint if it ever had one; the contents of checkpoints are not read.

    Raises:
        UserError: If all are gone, and nobody has asked that the run begins at zero.
        StoppedEarly: If the storage does not answer.
    """
    if not committed_checkpoints(run) and not run.zero_file.exists():
        refuse_to_lose(run)


def _committed_before(run: RunDirectory) -> str:
    """Return how the run shows that it had a checkpoint; an empty string if it does not."""
    lines = read_ledger(run.path)
    if lines and lines[-1].samples_to:
        return f"{run.ledger} says that {lines[-1].samples_to} samples were trained"

    # A first segment that was killed has no line yet, but notes its checkpoints.
    segment = read_open_segment(run.path)
    if segment is not None and segment.samples_to:
        return f"{run.open_segment} says that {segment.samples_to} samples were trained"

    names = os.listdir(run.checkpoints) if run.checkpoints.is_dir() else []
    if remains := sorted(name for name in names if looks_like_a_checkpoint(name)):
        return f"{run.checkpoints / remains[-1]} was a checkpoint"
    if LATEST in names:
        return f"{run.checkpoints / LATEST} names {read_latest(run.checkpoints)[:80]!r}"

    # A start makes the directory before it opens its segment.
    if run.open_segment.exists() and not run.checkpoints.is_dir():
        return f"{run.open_segment} says that training had begun"
    return ""


def set_aside_remains(root: Path) -> None:
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
