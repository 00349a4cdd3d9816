"""`flipscale bench loader`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from flipscale.config import load_job
from flipscale.errors import UserError
from flipscale.training.loader_rate import measure_loader


def bench_loader(
    path: Path, overrides: list[str], seconds: float, workers: int | None, as_json: bool
) -> None:
    if seconds <= 0:
        raise UserError(f"--seconds is {seconds:g}; give more than 0")
    if workers is not None and workers < 0:
        raise UserError(f"--workers is {workers}; give at least 0")
    job = load_job(path, overrides)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading", total=seconds)
        rate = measure_loader(job, seconds, workers, lambda passed: bar.update(task, completed=passed))
    if as_json:
        print(json.dumps(asdict(rate), indent=2))
        return
    a_core = f"{rate.images_per_second_per_core:.0f}"
    processes = f"{rate.workers} loader processes" if rate.workers else "this process"
    print(
        f"{a_core} images/s a core: {rate.images} images in {rate.seconds:.1f} s by {processes}; "
        f"{rate.bad} samples could not be used"
    )
    print(f"for the plan: flipscale plan {path} --images-per-core {a_core}")
