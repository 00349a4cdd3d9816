"""`flipscale rehearse`, and the same for `plan --rehearse` and `submit --rehearse`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.options import AsJson, JobFile, Overrides
from flipscale.errors import UserError
from flipscale.terminal import print_json, say

if TYPE_CHECKING:
    from flipscale.config import Job, Site
    from flipscale.planning.throughput import Speed
    from flipscale.rehearsal.results import Rehearsal
    from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class RehearseOptions:
    """The arguments and options of `flipscale rehearse`."""

    job: JobFile
    overrides: Overrides = None
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU to rehearse for; default: the site's, or h100-80gb.", show_default=False),
    ] = None
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs; default: the job's nodes x gpus_per_node.")
    ] = None
    site: Annotated[
        Path | None, typer.Option(help="Site file, for the network; default: $FLIPSCALE_SITE.")
    ] = None
    rank: Annotated[int, typer.Option(help="The rank whose step is run.")] = 0
    as_json: AsJson = False


def rehearse(options: RehearseOptions) -> None:
    """Run a job's step at its real size without a GPU: memory, collectives, waits, a bound of the time."""
    from flipscale.cli.rehearsal_tables import print_rehearsal
    from flipscale.config import load_job, load_site
    from flipscale.planning.throughput import make_speed

    job = load_job(options.job, options.overrides or [])
    on = make_speed(
        options.gpu,
        job.cluster.gpus if options.gpus is None else options.gpus,
        gpus_per_node=job.cluster.gpus_per_node,
        site=load_site(options.site),
    )
    found = rehearse_on(job, on, options.rank)
    if options.as_json:
        print_json(asdict(found))
    else:
        print_rehearsal(found)


def rehearse_on(job: Job, on: Speed, rank: int = 0) -> Rehearsal:
    """Rehearse a job, and name each phase on stderr when it is done.

    Args:
        job: The job.
        on: The GPUs, their number, and the network.
        rank: The rank whose step is run.

    Raises:
        UserError: If the job cannot be rehearsed.
    """
    from flipscale.rehearsal.rehearse import rehearse as run
    from flipscale.rehearsal.request import make_request

    return run(
        make_request(job, on, rank), lambda phase: say(f"rehearsed {job.name}, phase {phase}", error=True)
    )


def require_gpu(site: Site) -> None:
    """Refuse to rehearse a submission for a site that does not name its GPU.

    Raises:
        UserError: If it does not.
    """
    if site.gpu is None:
        raise UserError("--rehearse needs the kind of GPU; name it as `gpu` in the site file")


def rehearse_submission(
    runs: Sequence[tuple[RunDirectory, Job]], site: Site, *, quiet: bool
) -> list[Rehearsal]:
    """Rehearse jobs on the GPUs of a site before they are submitted.

    Args:
        runs: The run directories with their jobs.
        site: The site; it must name its GPU.
        quiet: Print no tables.

    Raises:
        UserError: If a step does not fit the site's GPU.
    """
    from flipscale.cli.rehearsal_tables import print_rehearsal
    from flipscale.orchestration.cluster.allocation import resolve_allocation
    from flipscale.planning.throughput import make_speed

    found: list[Rehearsal] = []
    for _, job in runs:
        asked = resolve_allocation(job, site)
        on = make_speed(None, asked.world_size, gpus_per_node=asked.processes_per_node, site=site)
        found.append(rehearse_on(job, on))
        if not quiet:
            print_rehearsal(found[-1])

    for rehearsal in found:
        for phase in rehearsal.phases:
            if not phase.fits:
                raise UserError(
                    f"{rehearsal.job}: the step of phase {phase.name} does not fit a {rehearsal.gpu}; "
                    "`flipscale plan` names the change that makes it fit"
                )
    return found


def keep_rehearsals(runs: Sequence[tuple[RunDirectory, Job]], found: Sequence[Rehearsal]) -> None:
    """Write each rehearsal into the run directory of its job, which exists."""
    import json

    from flipscale.files import write_durably

    for (run, _), rehearsal in zip(runs, found, strict=True):
        write_durably(run.rehearsal, json.dumps(asdict(rehearsal), indent=1) + "\n")
