"""Runs in Python: train, look, prove."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flipscale.orchestration.status.run_status import RunStatus
    from flipscale.runs.audit import AuditReport


def train(job: str | PathLike[str], *overrides: str) -> None:
    """Train a job in this process until its budget is spent; resume where it stopped.

    Under torchrun, every process calls this function. It takes over the signals of the process: Ctrl-C saves
    and stops.

    Args:
        job: The job file, or a run directory.
        overrides: Changes such as `"seed=1"`.

    Raises:
        UserError: If the job, its data or its run directory is wrong.
        StoppedEarly: If the run was stopped with work left; the same call resumes it.
        RunError: If the run cannot continue, for example because the disk is full.
    """
    from flipscale.cli.train import train as train_here

    train_here(Path(job), list(overrides))


def status(run: str | PathLike[str]) -> RunStatus:
    """Read how far a run is, what its processes do, and what to do next. Nothing is written.

    Args:
        run: The run directory.

    Raises:
        UserError: If it is not a run.
    """
    from flipscale.orchestration.status.liveness import SlurmView
    from flipscale.orchestration.status.run_status import read_status
    from flipscale.runs.directory import existing_run

    return read_status(existing_run(Path(run)).path, SlurmView(0.0))


def audit(run: str | PathLike[str]) -> AuditReport:
    """Compute again which samples belong to a run, and compare them with what the run recorded.

    Args:
        run: The run directory.

    Returns:
        The report; `proven` says whether every digest is that of the prescribed order.

    Raises:
        UserError: If it is not a run, or a record of it is damaged.
    """
    from flipscale.runs.audit import audit as compare
    from flipscale.runs.directory import existing_run

    return compare(existing_run(Path(run)))
