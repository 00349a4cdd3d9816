"""The order in which the checkpoints of a run were committed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Job
from flipscale.runs.directory import RunDirectory
from flipscale.runs.job_changes import saved_job
from flipscale.runs.manifest import (
    MANIFEST,
    Manifest,
    committed_samples,
    looks_like_a_checkpoint,
    read_manifest,
    samples_of,
)
from flipscale.runs.storage import read_patiently

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedCheckpoint:
    """A directory with the name of a checkpoint; its files are not verified.

    Attributes:
        path: The directory.
        samples: Samples seen, by its name.
        manifest: Its manifest; None if there is none, or if it is damaged.
    """

    path: Path
    samples: int
    manifest: Manifest | None


def in_order_of_commit(root: Path) -> list[ListedCheckpoint]:
    """Return all checkpoints in a directory, damaged ones included, the first commit first.

    Args:
        root: The directory of the checkpoints; it need not exist.

    Raises:
        UserError: If a newer version of flipscale wrote one.
        StoppedEarly: If the storage does not answer.
    """
    try:
        names = sorted(read_patiently(lambda: os.listdir(root), root))
    except OSError:
        return []

    listed: list[ListedCheckpoint] = []
    for name in names:
        samples = samples_of(name)
        if samples is not None:
            listed.append(ListedCheckpoint(root / name, samples, _manifest(root / name)))
        elif looks_like_a_checkpoint(name):
            _log.warning("%s is not named as a checkpoint, and stays as it is", root / name)

    return sorted_by_commit(listed)


def sorted_by_commit(listed: Iterable[ListedCheckpoint]) -> list[ListedCheckpoint]:
    """Return checkpoints in the order of their commit, the first commit first."""
    listed = list(listed)
    # After a roll-back, later commits have fewer samples. Where the order is not recorded, it was that of the
    # samples: a manifest of version 1, or a damaged one.
    numbered = {
        entry.path: entry.manifest.commit for entry in listed if entry.manifest and entry.manifest.commit
    }
    most = max((entry.samples for entry in listed if entry.path in numbered), default=0)
    last = max(numbered.values(), default=0)

    def order(entry: ListedCheckpoint) -> tuple[int, int]:
        return numbered.get(entry.path, last if entry.samples > most else 0), entry.samples

    return sorted(listed, key=order)


def last_commit(run: RunDirectory) -> tuple[int, Job | None]:
    """Return the samples of a run's newest checkpoint, and the job of the last whole manifest.

    Raises:
        UserError: If this version of flipscale cannot read the job.
        StoppedEarly: If the storage does not answer.
    """
    for entry in reversed(in_order_of_commit(run.checkpoints)):
        if entry.manifest is not None:
            return committed_samples(run), saved_job(entry.path, entry.manifest.job)
    return committed_samples(run), None


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_patiently(lambda: read_manifest(path), path / MANIFEST)
    except (OSError, ValueError):
        return None
