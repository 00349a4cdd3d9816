"""Checkpoints: sharded safetensors in a directory that counts only once its manifest is on disk.

torch.distributed.checkpoint writes `model.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME` for every parameter,
under every sharding strategy. The manifest lists every file with its size and SHA-256. It is written last,
and LATEST changes only after that. A checkpoint is verified against its manifest before it is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import (
    load as load_distributed,  # pyright: ignore[reportUnknownVariableType] - torch types PathLike without its item
)

from flipscale.errors import RunError, UserError
from flipscale.progress import Progress
from flipscale.runs.manifest import (
    LATEST,
    checkpoints_in,
    directory_name,
    read_manifest,
)

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

    def load(self, state: dict[str, Tensor]) -> None:
        """Fill the tensors of `state` in place; all processes of the group call it together.

        Args:
            state: Tensors by their names in the checkpoint; a DTensor gets this process's share.

        Raises:
            UserError: If a name or a shape is not in the checkpoint.
        """
        try:
            load_distributed(
                state,
                storage_reader=HuggingFaceStorageReader(str(self.path)),
                no_dist=not dist.is_initialized(),
            )
        except CheckpointException as error:
            raise UserError(f"{self.path} does not fit this model: {reason_of(error)}") from None


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or not as it was written; the message says how."""


def find(root: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, with a warning for each newer one that is damaged.

    Args:
        root: The directory of the checkpoints; it need not exist.

    Returns:
        The checkpoint; None if no checkpoint is whole.
    """
    names = sorted((entry.name for entry in root.glob("samples_*")), reverse=True) if root.exists() else []

    latest = root / LATEST
    if latest.exists():
        target = latest.read_text().strip()
        if target not in names:
            _log.warning("%s names %r, which does not exist; looking for another checkpoint", latest, target)

    for name in names:
        try:
            return read(root / name)
        except DamagedCheckpoint as damage:
            _log.warning("skipping the damaged checkpoint %s: %s", root / name, damage)

    return None


def read(path: Path) -> Checkpoint:
    """Verify one checkpoint against its manifest.

    Raises:
        DamagedCheckpoint: If a file is missing, short or changed.
    """
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        raise DamagedCheckpoint("it has no manifest, so its save was never finished") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"its manifest cannot be read ({error})") from None

    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if file.stat().st_size != entry.bytes:
            raise DamagedCheckpoint(f"{name} has {file.stat().st_size} bytes, not {entry.bytes}")
        if sha256(file) != entry.sha256:
            raise DamagedCheckpoint(f"the contents of {name} changed since it was written")

    return Checkpoint(path, manifest.progress, manifest.permanent, manifest.job)


def read_phase_end(root: Path, samples_seen: int) -> Checkpoint:
    """Read the checkpoint at the end of a phase, from which the next phase begins.

    Args:
        root: The directory of the checkpoints.
        samples_seen: Samples seen at the end of the phase.

    Raises:
        RunError: If the checkpoint is damaged.
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


def prune(root: Path, keep_last: int) -> None:
    """Delete committed checkpoints, except the newest `keep_last`, permanent and damaged ones.

    Args:
        root: The directory of the checkpoints.
        keep_last: How many of the newest checkpoints stay, permanent ones included.
    """
    newest_first = checkpoints_in(root)[::-1]
    for checkpoint in newest_first[keep_last:]:
        try:
            if read_manifest(checkpoint.path).permanent:
                continue
        except (OSError, ValueError):
            continue  # damaged: left for a person to look at

        # The manifest first, so that a half-deleted directory never looks committed.
        checkpoint.manifest.unlink()
        shutil.rmtree(checkpoint.path)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


def reason_of(error: BaseException) -> str:
    """Return why a save or a load failed: the first process's error, if torch wraps those of several."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left on the file system"
    return str(error)
