"""What Slurm says of a job before it is submitted, and which nodes the job avoids."""

from __future__ import annotations

from collections.abc import Sequence

from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.orchestration.checks.finding import CheckWarning, Finding
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.blamed_nodes import blamed_nodes
from flipscale.orchestration.cluster.refusals import explain_refusal
from flipscale.runs.directory import RunDirectory
from flipscale.slurm import NoAnswerError, SlurmError, run_slurm


def check_acceptance(script: str) -> str:
    """Let Slurm judge the batch script; it also knows a job that would wait for ever.

    Args:
        script: The batch script, as it will be submitted.
    """
    try:
        run_slurm("sbatch", "--test-only", stdin=script)
    except NoAnswerError as error:
        raise CheckWarning(f"Slurm did not say whether it takes the job: {error}") from None
    except SlurmError as error:
        raise UserError(explain_refusal(str(error))) from None
    return "Slurm takes the job"


def examine_blamed_nodes(runs: Sequence[RunDirectory], site: Site, allocation: Allocation) -> list[Finding]:
    """Say which nodes the job avoids, or uses although they are blamed; nothing if none is blamed.

    Args:
        runs: The runs that are submitted together.
        site: The cluster.
        allocation: The resources of the job.
    """
    blamed = blamed_nodes(runs, site, allocation)
    texts: list[str] = []
    if blamed.left_out:
        texts.append(
            f"{', '.join(blamed.left_out)}: two segments of the run blame it, and the job avoids it; if "
            "it is repaired, set exclude_blamed: false in the site file"
        )
    if blamed.needed:
        why = "too few other nodes remain" if site.exclude_blamed else "exclude_blamed is false"
        texts.append(
            f"{', '.join(blamed.needed)}: two segments of the run blame it, but the job may use it, "
            f"because {why}"
        )
    return [Finding("blamed nodes", "warning", text) for text in texts]
