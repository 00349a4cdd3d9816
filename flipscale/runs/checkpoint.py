"""Checkpoints: sharded safetensors in a directory that counts only once its manifest is on disk.

torch.distributed.checkpoint writes `model.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME` for every parameter,
under every sharding strategy. The manifest lists every file with its size and SHA-256. It is written last,
and LATEST changes only after that. A checkpoint is verified against its manifest before it is loaded.
"""

from __future__ import annotations

import errno
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import (
    load as load_distributed,
)

from flipscale.config import Job
from flipscale.errors import RunError, UserError, words_of
from flipscale.files import too_many_files
from flipscale.progress import Progress
from flipscale.runs.commit_order import in_order_of_commit
from flipscale.runs.job_changes import saved_job
from flipscale.runs.manifest import LATEST, directory_name, read_latest
from flipscale.runs.storage import read_patiently
from flipscale.runs.verification import DamagedCheckpoint, verify

_log = logging.getLogger(__name__)

# A run of one process saves without torch.distributed on purpose; torch would warn from a background thread.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files were verified.

    Attributes:
        path: Its directory.
        progress: Progress of the run.
        permanent: Whether it is never deleted.
        job: The resolved job, as a document.
    """

    path: Path
    progress: Progress
    permanent: bool
    job: dict[str, Any]

    def saved_job(self) -> Job:
        """Return the job that the checkpoint was saved with.

        Raises:
            UserError: If this version of flipscale cannot read the job.
        """
        return saved_job(self.path, self.job)

    def load(self, state: dict[str, Tensor]) -> None:
        """Fill the tensors of `state` in place; all processes of the group call it together.

        Args:
            state: Tensors by their names in the checkpoint; a DTensor gets this process's share.

        Raises:
            UserError: If a name or a shape is not in the checkpoint.
            RunError: If its files were changed since they were verified.
            StoppedEarly: On every process, if the storage does not answer to one of them.
        """
        try:
            read_patiently(lambda: self._load(state), self.path)
        except OSError as error:
            raise RunError(
                f"{self.path} was changed while it was read ({words_of(error)}); run the same command again",
                kind="disk",
            ) from None
        except CheckpointException as error:
            raise UserError(f"{self.path} does not fit this model: {reason_of(error)}") from None

    def _load(self, state: dict[str, Tensor]) -> None:
        """Load once.

        Raises:
            OSError: On every process, if a file cannot be read by one of them.
            CheckpointException: If a name or a shape is not in the checkpoint.
        """
        try:
            load_distributed(
                state,
                storage_reader=HuggingFaceStorageReader(str(self.path)),
                no_dist=not dist.is_initialized(),
            )
        except CheckpointException as error:
            # All processes have the failures of all, so that they make the next attempt together.
            causes = [cause for cause, _ in error.failures.values()]
            for cause in causes:
                if isinstance(cause, OSError):
                    raise cause from None
            raise


def find(root: Path) -> Checkpoint | None:
    """Return the checkpoint that was committed last and is whole, with a warning for each damaged later one.

    Args:
        root: The directory of the checkpoints; it need not exist.

    Returns:
        The checkpoint; None if no checkpoint is whole.

    Raises:
        UserError: If a newer version of flipscale wrote one.
        StoppedEarly: If the storage does not answer.
    """
    listed = in_order_of_commit(root)

    latest = read_latest(root)
    if latest and latest not in [entry.path.name for entry in listed]:
        _log.warning(
            "%s names %r, which does not exist; looking for another checkpoint", root / LATEST, latest[:80]
        )

    for entry in reversed(listed):
        try:
            return read(entry.path)
        except DamagedCheckpoint as damage:
            _log.warning("skipping the damaged checkpoint %s: %s", entry.path, damage)

    return None


def read(path: Path) -> Checkpoint:
    """Verify one checkpoint against its manifest.

    Raises:
        DamagedCheckpoint: If a file is missing, short, changed or not in the manifest.
        UserError: If a newer version of flipscale wrote it.
        StoppedEarly: If the storage does not answer.
    """
    manifest = verify(path)
    return Checkpoint(path, manifest.progress, manifest.permanent, manifest.job)


def read_phase_end(root: Path, samples_seen: int) -> Checkpoint:
    """Read the checkpoint at the end of a phase, from which the next phase begins.

    Args:
        root: The directory of the checkpoints.
        samples_seen: Samples seen at the end of the phase.

    Raises:
        RunError: If the checkpoint is damaged.
        StoppedEarly: If the storage does not answer.
    """
    path = root / directory_name(samples_seen)
    try:
        return read(path)
    except DamagedCheckpoint as damage:
        raise RunError(
            f"the next phase cannot begin from {path}: {damage}; run the same command again to resume "
            "from the checkpoint before",
            kind="disk",
        ) from None


def reason_of(error: BaseException) -> str:
    """Return why a save or a load failed: the first process's error, if torch wraps those of several."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left on the file system"
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return too_many_files()
    return str(error)
