"""manifest.json of a checkpoint: written last, so that a directory without it is not a checkpoint.

The manifest protects itself: it ends in a SHA-256 over all that it says, and it has these keys and no others.
This module does not import torch, so that looking at a run is quick.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from flipscale.documents import parse_object
from flipscale.errors import UserError
from flipscale.files import open_regular
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory

VERSION = 2
MANIFEST = "manifest.json"
LATEST = "LATEST"
_PREFIX = "samples_"
_LARGEST = 1 << 28
"""Bytes of the largest manifest that is read; one of 10,000 files has 2 MB."""

# Version 1 (flipscale 0.1 and 0.2) has neither the order of commits nor a digest of its own.
_KEYS = {1: {"version", "progress", "permanent", "files", "job"}}
_KEYS[2] = _KEYS[1] | {"commit", "sha256"}
_PROGRESS_KEYS = {field.name for field in fields(Progress)} - {"content"}
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


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
        commit: Number of the commit in the run, from 1; 0 in a manifest of version 1, which has none.
    """

    progress: Progress
    permanent: bool
    files: Mapping[str, StoredFile]
    job: dict[str, Any]
    commit: int = 0

    def to_json(self) -> str:
        """Return the text of the file, in the newest version of the format."""
        document: dict[str, Any] = {
            "version": VERSION,
            "progress": self.progress.as_record(),
            "permanent": self.permanent,
            "files": {name: asdict(file) for name, file in self.files.items()},
            "job": self.job,
            "commit": self.commit,
        }
        return json.dumps(document | {"sha256": _digest(document)}, indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read the contents of a file that `to_json` or an older version of flipscale wrote.

        Raises:
            ValueError: If the manifest is damaged; the message says how.
            UserError: If a newer version of flipscale wrote it.
        """
        document, whole = _parsed(data)
        version = document.get("version")

        # A version that is not known is a newer one only if the manifest is whole.
        if type(version) is not int or version not in _KEYS:
            if whole:
                raise UserError(
                    f"a newer flipscale wrote this checkpoint (version {version}); update flipscale"
                )
            raise ValueError("it has no known version")
        if document.keys() != _KEYS[version]:
            raise ValueError("it has other keys than a manifest")
        if version > 1 and not whole:
            raise ValueError("its contents changed since it was written")

        return cls(
            progress=_progress(document["progress"]),
            permanent=_typed(document["permanent"], bool, "permanent"),
            files=_files(document["files"]),
            job=_mapping(document["job"], "job"),
            commit=_count(document.get("commit", 0), "commit"),
        )


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


def samples_of(name: str) -> int | None:
    """Return the samples seen that the name of a checkpoint's directory says; None for any other name."""
    digits = name.removeprefix(_PREFIX)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        return None
    return int(digits) if directory_name(int(digits)) == name else None


def looks_like_a_checkpoint(name: str) -> bool:
    """Return whether a name begins as those of checkpoints do."""
    return name.startswith(_PREFIX)


def committed_checkpoints(run: RunDirectory) -> list[CommittedCheckpoint]:
    """Return the committed checkpoints of a run, the newest last; their files are not read.

    They are sorted by samples, but the one that LATEST names comes last: after a roll-back, others have more
    samples.
    """
    root = run.checkpoints
    committed = [
        CommittedCheckpoint(samples, manifest.parent)
        for manifest in root.glob(f"{_PREFIX}*/{MANIFEST}")
        if (samples := samples_of(manifest.parent.name)) is not None
    ]
    latest = read_latest(root)
    return sorted(committed, key=lambda checkpoint: (checkpoint.path.name == latest, checkpoint.samples))


def committed_samples(run: RunDirectory) -> int:
    """Return the samples seen at the newest committed checkpoint; 0 if there is none."""
    committed = committed_checkpoints(run)
    return committed[-1].samples if committed else 0


def read_manifest(checkpoint: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        FileNotFoundError: If the checkpoint has none, so that it was never committed.
        ValueError: If the manifest is damaged, or that of another checkpoint; the message says how.
        UserError: If a newer version of flipscale wrote it.
        OSError: If it cannot be read.
    """
    path = checkpoint / MANIFEST
    with open_regular(path) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes")

    try:
        manifest = Manifest.from_json(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

    samples = samples_of(checkpoint.name)
    if samples is not None and samples != manifest.progress.samples_seen:
        raise ValueError(f"it is the manifest of {directory_name(manifest.progress.samples_seen)}")
    return manifest


def read_progress(checkpoint: Path) -> Progress:
    """Read only the progress of a checkpoint from its manifest.

    Raises:
        ValueError: If the manifest is damaged.
        UserError: If a newer version of flipscale wrote it.
        OSError: If it cannot be read.
    """
    return read_manifest(checkpoint).progress


def read_latest(root: Path) -> str:
    """Return the directory name that LATEST holds; an empty string if the file is missing.

    Args:
        root: The directory of the checkpoints.
    """
    latest = root / LATEST
    try:
        return latest.read_text().strip() if latest.is_file() else ""
    except (OSError, ValueError):
        return ""


def _digest(document: Mapping[str, object]) -> str:
    """Return the SHA-256 of a document, however its text is laid out."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(data: bytes) -> tuple[dict[str, object], bool]:
    """Return the document of a text, and whether it has the digest that it names."""
    try:
        document = parse_object(data)
        said = {key: value for key, value in document.items() if key != "sha256"}
        return document, document.get("sha256") == _digest(said)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _progress(value: object) -> Progress:
    record = _mapping(value, "progress")
    if record.keys() - {"content"} != _PROGRESS_KEYS:
        raise ValueError("progress has other keys than it should have")
    for key, number in record.items():
        _count(number, f"progress.{key}")
    return Progress.from_record(record)


def _files(value: object) -> dict[str, StoredFile]:
    files: dict[str, StoredFile] = {}
    for name, described in _mapping(value, "files").items():
        entry = _mapping(described, "files")
        sha256 = _typed(entry.get("sha256"), str, "files")
        if entry.keys() != {"bytes", "sha256"} or not _SHA256.fullmatch(sha256):
            raise ValueError("files holds something else than sizes and digests")
        # Only names of files in this directory, whatever a manifest says.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"it names {name[:80]!r}, which is not a file of a checkpoint")
        files[name] = StoredFile(_count(entry["bytes"], "files"), sha256)

    if not files:
        raise ValueError("it names no files")
    return files


def _mapping(value: object, key: str) -> dict[str, Any]:
    return cast("dict[str, Any]", _typed(value, dict, key))


def _count(value: object, key: str) -> int:
    number = _typed(value, int, key)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{key} is {number}")
    return number


def _typed(value: object, kind: type[T], key: str) -> T:
    # bool is a kind of int, but no number of samples.
    if type(value) is not kind:
        raise ValueError(f"{key} is not of the type {kind.__name__}")
    return value
