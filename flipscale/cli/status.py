"""`flipscale status`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.options import AsJson
from flipscale.errors import UserError
from flipscale.terminal import print_json

if TYPE_CHECKING:
    from flipscale.orchestration.status.liveness import SlurmView
    from flipscale.orchestration.status.run_status import RunStatus

_REDRAW_SECONDS = 2.0
_LOG_SECONDS = 30.0  # between two pages, if the output is not a terminal
_ASK_SLURM_SECONDS = 30.0


def status(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, or one with runs below.", show_default=False)
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Redraw every few seconds; Ctrl-C ends it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, what its job and its processes do, and what to do next; or list all runs."""
    from flipscale.cli.console import wide_console
    from flipscale.cli.status_page import status_document, status_page
    from flipscale.orchestration.status.liveness import SlurmView
    from flipscale.runs.snapshot import runs_below

    if watch and as_json:
        raise UserError("--watch draws pages for people; leave it out to get one JSON document")
    path = run.resolve()
    paths = runs_below(path) if path.is_dir() else []
    if not paths:
        raise UserError(f"there is no run at or below {path}; name the output of `flipscale train`")

    slurm = SlurmView(_ASK_SLURM_SECONDS if watch else 0.0)
    if watch:
        _watch(path, paths, slurm)
        return

    statuses, problems = _read(path, paths, slurm)
    if as_json:
        print_json(status_document(path, statuses, problems))
    else:
        console = wide_console()
        console.print(status_page(path, statuses, problems, console))


def _read(path: Path, paths: Sequence[Path], slurm: SlurmView) -> tuple[list[RunStatus], list[str]]:
    """Read the runs; the problem of the only run is an error, those of several are listed."""
    from flipscale.orchestration.status.run_status import read_statuses
    from flipscale.runs.snapshot import is_run

    statuses, problems = read_statuses(paths, slurm)
    if problems and is_run(path):
        raise UserError(problems[0])

    return statuses, problems


def _watch(path: Path, paths: Sequence[Path], slurm: SlurmView) -> None:
    """Redraw until Ctrl-C, or until nothing will change without a person."""
    from rich.live import Live

    from flipscale.cli.console import wide_console
    from flipscale.cli.status_page import status_page
    from flipscale.orchestration.status.outlook import continues_by_itself

    console = wide_console()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        try:
            while True:
                statuses, problems = _read(path, paths, slurm)
                page = status_page(path, statuses, problems, console)
                if console.is_terminal:
                    live.update(page, refresh=True)
                else:
                    console.print(page)

                if not any(continues_by_itself(status.state) for status in statuses):
                    return
                time.sleep(_REDRAW_SECONDS if console.is_terminal else _LOG_SECONDS)
        except KeyboardInterrupt:
            return
