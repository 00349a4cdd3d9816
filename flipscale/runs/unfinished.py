"""Directories of checkpoints under way: saves that are not committed, and old checkpoints being deleted."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

_NAME = re.compile(r"saving_\d{12,20}\.[0-9a-f]{8}")


def unfinished(root: Path, samples: int, token: str) -> Path:
    """Return the path of a directory that no reader takes for a checkpoint.

    Args:
        root: The directory of the checkpoints.
        samples: Samples seen.
        token: A `new_token`, which keeps different starts apart.
    """
    return root / f"saving_{samples:012d}.{token}"


def new_token() -> str:
    """Return a random name that only its owner knows."""
    return secrets.token_hex(4)


def is_unfinished(name: str) -> bool:
    """Return whether a directory has the name of a save or a deletion that did not end yet."""
    return _NAME.fullmatch(name) is not None


def remove_unfinished(root: Path) -> None:
    """Remove what interrupted saves and deletions have left."""
    for path in root.glob("saving_*"):
        if is_unfinished(path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def discard(path: Path, samples: int) -> None:
    """Delete a checkpoint at once for every reader, and its files after that.

    If the process dies on the way, the next start removes the rest. A link is removed, and what it leads to
    stays.

    Args:
        path: The checkpoint, or whatever has its name.
        samples: Samples seen.

    Raises:
        OSError: If it cannot be renamed.
    """
    doomed = unfinished(path.parent, samples, new_token())
    path.rename(doomed)
    if doomed.is_symlink() or not doomed.is_dir():
        doomed.unlink()
    else:
        shutil.rmtree(doomed, ignore_errors=True)
