"""Files that are written as a whole, and the check that a file can be written at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from flipscale.errors import UserError


def check_writable(path: Path) -> None:
    """Check that a file can be written, before hours of work whose result goes into it.

    The directory of the file is made. The content of the file stays as it is; a new file is removed again.

    Args:
        path: The file.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        # If a file is in the place of the directory, `open` reports it more clearly than `mkdir`.
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)

        new = not os.path.lexists(path)
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another --out") from None


def write_durably(path: Path, text: str) -> None:
    """Replace a file so that after a crash it has either its old or its new content.

    The new content is on disk when the function returns.

    Args:
        path: The file.
        text: The new content, which is encoded as UTF-8.
    """
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)

    # The directory holds the new name only once it is synchronised, too.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
