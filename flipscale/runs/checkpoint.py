"""Checkpoints: sharded safetensors in a directory that counts only once its manifest is on disk.

A checkpoint holds `model.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME` for every parameter, whatever the
sharding, written by torch.distributed.checkpoint. Its manifest lists every file with size and SHA-256, is
written last, and only then does LATEST change. Loading verifies all of it.
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
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException

from flipscale.errors import RunError, UserError
from flipscale.progress import Progress
from flipscale.runs.manifest import (
    LATEST,
    checkpoints_in,
    directory_name,
    read_manifest,
)

_log = logging.getLogger(__name__)

# One process that saves alone is meant; the remark would come from a background thread at any moment.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files were found whole."""

    path: Path
    progress: Progress
    permanent: bool
    job: dict[str, Any]

    def load(self, state: dict[str, Tensor]) -> None:
        """Fill the tensors of `state` in place; all processes of the group take part.

        Raises UserError where a name or a shape is not in the checkpoint.
        """
        try:
            dcp.load(
                state,
                storage_reader=HuggingFaceStorageReader(str(self.path)),
                no_dist=not dist.is_initialized(),
            )
        except CheckpointException as error:
            raise UserError(f"{self.path} does not fit this model: {reason_of(error)}") from None


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or not as it was written; the message says how."""


def find(root: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint under `root`, warning about each newer one that is damaged."""
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
    """The checkpoint at the end of a phase, which the next one begins from. Raises RunError where it is
    damaged."""
    path = root / directory_name(samples_seen)
    try:
        return read(path)
    except DamagedCheckpoint as damage:
        raise RunError(
            f"the next phase cannot begin from {path}: {damage}; give the same command again to go on from "
            "the checkpoint before",
            kind="disk",
        ) from None


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` committed checkpoints and those marked permanent."""
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
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


def reason_of(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left on the file system"
    return str(error)
