"""`flipscale bench loader`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

import typer

from flipscale.cli.options import AsJson, JobFile, Overrides
from flipscale.errors import UserError
from flipscale.terminal import print_json, say


def bench_loader(
    job: JobFile,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(help="How long to read.")] = 10.0,
    workers: Annotated[
        int | None,
        typer.Option(help="Loader processes; default: all cores, 0 for none.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the images per second per core that a job's data, augmentation and tokenizer give."""
    from flipscale.cli.console import progress_bar
    from flipscale.config import load_job
    from flipscale.training.loader_rate import measure_loader

    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds is {seconds:g}; give a number above 0")
    if workers is not None and workers < 0:
        raise UserError(f"--workers is {workers}; give at least 0")

    loaded = load_job(job, overrides or [])
    with progress_bar("reading", total=seconds) as bar:
        rate = measure_loader(loaded, seconds, workers, bar.show)

    if as_json:
        print_json(asdict(rate))
        return

    per_core = f"{rate.images_per_second_per_core:.0f}"
    processes = f"{rate.workers} loader processes" if rate.workers else "this process"
    say(
        f"{per_core} images/s per core: {rate.images} images in {rate.seconds:.1f} s by {processes}; "
        f"{rate.bad} samples could not be used"
    )
    say(f"for the plan: flipscale plan {job} --images-per-core {per_core}")
