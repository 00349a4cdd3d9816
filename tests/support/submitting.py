"""`flipscale submit` as tests call it, on a PATH with stand-ins for Slurm's commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flipscale.cli.submit import SubmitOptions
from flipscale.cli.submit import submit as submit_command

WriteSite = Callable[..., Path]
"""Writes a site file without GPUs and with 4 cores per node; the arguments are further keys."""


def submit(*arguments: Path | str, site: Path | None = None, **options: Any) -> None:
    """Run the command, with `--json` unless `options` say otherwise."""
    jobs = [str(argument) for argument in arguments]
    chosen: dict[str, Any] = {"as_json": True} | options
    submit_command(SubmitOptions(jobs=jobs, site=site, **chosen))


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: Path | str, **options: Any) -> dict[str, Any]:
    """Return what `--dry-run --json` prints."""
    submit(*arguments, dry_run=True, **options)
    return json.loads(capsys.readouterr().out)


def check_syntax(script: str) -> None:
    """Let bash parse a script."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
