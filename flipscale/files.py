"""Files that are written whole, and the question whether one can be written at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from flipscale.errors import UserError


def check_writable(path: Path) -> None:
    """Make a file's directory and open the file, rather than find after hours that it cannot be written.

    Its content stays as it is, or the file absent. Raises UserError where it cannot be written.
    """
    try:
        with suppress(FileExistsError):  # a file in the place of the directory: `open` says so more clearly
            path.parent.mkdir(parents=True, exist_ok=True)
        new = not os.path.lexists(path)
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another --out") from None


def write_durably(path: Path, text: str) -> None:
    """Replace a file so that after a crash it has either its old or its new content; on disk on return."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
