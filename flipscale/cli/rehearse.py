"""`flipscale rehearse`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flipscale.cli.options import AsJson, JobFile, Overrides
from flipscale.terminal import print_json, say


def rehearse(
    job: JobFile,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="GPU to rehearse for, such as a100-80gb.")] = "h100-80gb",
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs; default: the job's nodes x gpus_per_node.")
    ] = None,
    rank: Annotated[int, typer.Option(help="The rank whose step is run.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a job's step at its real size without a GPU: memory, collectives, waits, a bound of the time."""
    from flipscale.cli.rehearsal_tables import print_rehearsal
    from flipscale.config import load_job
    from flipscale.rehearsal.rehearse import rehearse as run
    from flipscale.rehearsal.request import make_request

    request = make_request(load_job(job, overrides or []), gpu, gpus, rank)
    found = run(request, lambda phase: say(f"rehearsed the phase {phase}", error=True))
    if as_json:
        print_json(asdict(found))
    else:
        print_rehearsal(found)
