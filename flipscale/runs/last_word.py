"""heartbeats/ATTEMPT/last_word.json: why a start is the last one, so that nothing starts the job again."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from flipscale.runs.failures import Failure
from flipscale.runs.heartbeat import DIRECTORY

NAME: Final = "last_word.json"
"""The name of the file, for which the batch script looks."""


def write_last_word(run: Path, attempt: str, failure: Failure) -> None:
    """Note that a start needs no other one. The batch script starts a job again that ends without this note.

    Several processes of the start may call this function; the first note stays.

    Args:
        run: The run directory.
        attempt: The name of the start; see `Heartbeat.attempt`.
        failure: How the start ended; its kind may be `done`.
    """
    path = run / DIRECTORY / attempt / NAME

    # On a full disk there is no note. The job then starts again, until three starts brought no progress.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            json.dump(asdict(failure), file)
