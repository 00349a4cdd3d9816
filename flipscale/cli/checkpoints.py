"""`flipscale checkpoints`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.options import AsJson, Run
from flipscale.errors import RunError, StoppedEarly
from flipscale.terminal import print_json, printable, say

if TYPE_CHECKING:
    from flipscale.runs.checkpoint_list import CheckpointList, StoredCheckpoint


def checkpoints(
    run: Run,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file and compare it with its manifest.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the checkpoints of a run, the first commit first; with --verify, exit 1 if one is damaged."""
    from flipscale.cli.console import progress_bar
    from flipscale.runs.checkpoint_list import list_checkpoints, verify_checkpoints
    from flipscale.runs.directory import existing_run

    directory = existing_run(run)
    listed = list_checkpoints(directory)
    if verify:
        size = sum(checkpoint.bytes for checkpoint in listed.checkpoints if checkpoint.problem is None)
        try:
            with progress_bar("verifying", size) as bar:
                listed = verify_checkpoints(directory, listed, bar.advance)
        except StoppedEarly:
            if not as_json:
                _print(listed)
            raise

    if as_json:
        print_json({"run": str(directory.path), "verified": verify, **asdict(listed)})
    else:
        _print(listed)
    if listed.latest and not any(checkpoint.latest for checkpoint in listed.checkpoints):
        say(f"warning: LATEST names {listed.latest[:80]!r}, which is not among them", error=True)

    if verify and listed.damaged:
        names = ", ".join(checkpoint.name for checkpoint in listed.damaged)
        raise RunError(
            f"{len(listed.damaged)} of {len(listed.checkpoints)} checkpoints are not whole: {names}; a start "
            + (
                "resumes from the last commit that is whole"
                if len(listed.damaged) < len(listed.checkpoints)
                else "is refused; restore one, or begin again with `flipscale train --from-zero`"
            )
        )
    if verify and not as_json:
        say("every file has the size and the SHA-256 of its manifest")


def _print(listed: CheckpointList) -> None:
    """Print the table, and below it what is wrong: these sentences are too long for a column."""
    from flipscale.cli.console import print_table
    from flipscale.formatting import format_bytes

    # Samples are in the name, and the marks are rows of their own: the columns fit 80 characters.
    rows: list[tuple[str, ...]] = []
    for checkpoint in listed.checkpoints:
        rows.append(
            (
                checkpoint.name,
                checkpoint.phase or "",
                (checkpoint.saved or "")[: len("2026-01-31T12:00")].replace("T", " "),
                format_bytes(checkpoint.bytes),
                (checkpoint.kept or "").replace("_end", " end"),
            )
        )
        rows.extend((mark, "", "", "", "") for mark in _marks(checkpoint))
    if rows:
        print_table(("checkpoint", "phase", "saved (UTC)", "size", "kept by"), rows)

    for checkpoint in listed.damaged:
        say(f"{checkpoint.name} is damaged: {checkpoint.problem}")
    for other in listed.others:
        size = format_bytes(other.bytes)
        say(f"{printable(other.name, keep='')} ({size}) is not a checkpoint of this run: {other.reason}")


def _marks(checkpoint: StoredCheckpoint) -> list[str]:
    marks = ("LATEST" if checkpoint.latest else "", "damaged" if checkpoint.problem else "")
    return [f"  {mark}" for mark in marks if mark]
