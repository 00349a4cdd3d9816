"""The verification of a checkpoint: every file is read and compared with the manifest.

This module does not import torch, so that a command can verify checkpoints without it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flipscale.errors import words_of
from flipscale.runs.manifest import MANIFEST, Manifest, StoredFile, read_manifest
from flipscale.runs.storage import read_patiently


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or not as it was written; the message says how."""


def verify(path: Path, report: Callable[[int], None] = lambda size: None) -> Manifest:
    """Compare a checkpoint with its manifest, and return the manifest.

    Args:
        path: The checkpoint.
        report: A function that is called with the bytes of each block that was read.

    Raises:
        DamagedCheckpoint: If a file is missing, short, changed or not in the manifest.
        UserError: If a newer version of flipscale wrote it.
        StoppedEarly: If the storage does not answer.
    """
    try:
        manifest = read_patiently(lambda: read_manifest(path), path / MANIFEST)
        names = read_patiently(lambda: os.listdir(path), path)
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(manifest_problem(error)) from None

    # The loader takes every file that it finds. Hidden names are those of file servers (.nfs...).
    unknown = {name for name in names if not name.startswith(".")} - manifest.files.keys() - {MANIFEST}
    if unknown:
        raise DamagedCheckpoint(f"it holds {min(unknown)[:80]!r}, which is not of it; move that away")

    for name, stored in manifest.files.items():
        try:
            read_patiently(partial(_check_file, path / name, stored, report), path / name)
        except OSError:
            raise DamagedCheckpoint(f"{name} is missing") from None

    return manifest


def manifest_problem(error: OSError | ValueError) -> str:
    """Return what is wrong with a checkpoint whose manifest `read_manifest` could not read."""
    if isinstance(error, FileNotFoundError):
        return "it has no manifest, so its save was never finished"
    return f"its manifest cannot be read ({words_of(error)})"


def _check_file(file: Path, stored: StoredFile, report: Callable[[int], None]) -> None:
    """Compare a file with its entry in the manifest.

    Raises:
        DamagedCheckpoint: If it is another.
        OSError: If it cannot be read.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DamagedCheckpoint(f"{file.name} is not a file")
    if status.st_size != stored.bytes:
        raise DamagedCheckpoint(f"{file.name} has {status.st_size} bytes, not {stored.bytes}")
    if sha256(file, report) != stored.sha256:
        raise DamagedCheckpoint(f"the contents of {file.name} changed since it was written")


def sha256(path: Path, report: Callable[[int], None] = lambda size: None) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal.

    Args:
        path: The file.
        report: A function that is called with the bytes of each block that was read.
    """
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
            report(len(block))
    return hasher.hexdigest()
