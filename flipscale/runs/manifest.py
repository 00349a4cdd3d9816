"""manifest.json of a checkpoint: written last, so that a directory without it is not a checkpoint.

This module does not import torch, so that looking at a run is quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory

VERSION = 1
MANIFEST = "manifest.json"
LATEST = "LATEST"
_PREFIX = "samples_"


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint as it was written.

    Attributes:
        bytes: Its size.
        sha256: SHA-256 of its contents, in hexadecimal.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint.

    Attributes:
        progress: Progress of the run.
        permanent: Whether the checkpoint is never deleted.
        files: Every other file of the checkpoint by its name.
        job: The resolved job, as a document.
    """

    progress: Progress
    permanent: bool
    files: Mapping[str, StoredFile]
    job: dict[str, Any]

    def to_json(self) -> str:
        """Return the text of the file."""
        document = {
            "version": VERSION,
            "progress": self.progress.as_record(),
            "permanent": self.permanent,
            "files": {name: asdict(file) for name, file in self.files.items()},
            "job": self.job,
        }
        return json.dumps(document, indent=1)


@dataclass(frozen=True, order=True)
class CommittedCheckpoint:
    """A checkpoint that was committed; its files may have been damaged since.

    Attributes:
        samples: Samples seen, by the directory's name.
        path: The directory.
    """

    samples: int
    path: Path

    @property
    def manifest(self) -> Path:
        """The path of its manifest."""
        return self.path / MANIFEST


def directory_name(samples_seen: int) -> str:
    """Return the name of the directory of a checkpoint."""
    return f"{_PREFIX}{samples_seen:012d}"


def committed_checkpoints(run: RunDirectory) -> list[CommittedCheckpoint]:
    """Return the committed checkpoints of a run, oldest first; their files are not read."""
    return checkpoints_in(run.checkpoints)


def checkpoints_in(root: Path) -> list[CommittedCheckpoint]:
    """Return the committed checkpoints in a directory of checkpoints, oldest first."""
    committed: list[CommittedCheckpoint] = []
    for manifest in root.glob(f"{_PREFIX}*/{MANIFEST}"):
        digits = manifest.parent.name.removeprefix(_PREFIX)
        if digits.isdigit():
            committed.append(CommittedCheckpoint(int(digits), manifest.parent))
    return sorted(committed)


def committed_samples(run: RunDirectory) -> int:
    """Return the samples seen at the newest committed checkpoint; 0 if there is none."""
    return max((checkpoint.samples for checkpoint in committed_checkpoints(run)), default=0)


def read_manifest(checkpoint: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        FileNotFoundError: If the checkpoint has none, so that it was never committed.
        ValueError: If the manifest is damaged; the message says how.
        OSError: If it cannot be read.
    """
    document = json.loads((checkpoint / MANIFEST).read_text())
    try:
        return Manifest(
            progress=Progress.from_record(document["progress"]),
            permanent=bool(document["permanent"]),
            files={
                name: StoredFile(int(file["bytes"]), str(file["sha256"]))
                for name, file in document["files"].items()
            },
            job=document["job"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def read_progress(checkpoint: Path) -> Progress:
    """Read only the progress of a checkpoint from its manifest.

    Raises:
        ValueError: If the manifest is damaged.
        OSError: If it cannot be read.
    """
    document = json.loads((checkpoint / MANIFEST).read_text())
    try:
        return Progress.from_record(document["progress"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def read_latest(run: RunDirectory) -> str:
    """Return the directory name that LATEST holds; an empty string if there is no such file."""
    latest = run.checkpoints / LATEST
    return latest.read_text().strip() if latest.is_file() else ""
