"""Secrets in the addresses of a job, which job.yaml, the manifests and the index would show to everybody."""

from __future__ import annotations

import logging

from flipscale.addresses import find_secret, is_address, without_secrets
from flipscale.config import Job
from flipscale.errors import UserError
from flipscale.runs.job_changes import job_leaves

_FIX = (
    "write ${NAME} in its place and set the environment variable NAME, or leave user and password out and "
    "put them into ~/.netrc (see docs/data.md#credentials)"
)
_log = logging.getLogger(__name__)


def check_no_secrets(job: Job, before: Job | None = None) -> None:
    """Check that no address of a job has a secret in it.

    A run that has recorded the same secret already is only warned of.

    Args:
        job: The job.
        before: The job that the run has recorded; None for a new run.

    Raises:
        UserError: If an address has a secret that the run has not recorded yet.
    """
    recorded = {text for _, text in job_addresses(before)} if before is not None else set[str]()
    for key, address in job_addresses(job):
        secret = find_secret(address)
        if secret is None:
            continue

        text = f"{key} has {secret} in the address {without_secrets(address)}"
        if address not in recorded:
            raise UserError(f"{text}, which the run directory would show to everybody; {_FIX}")
        _log.warning("%s, which the run directory shows to everybody; %s", text, _FIX)


def check_no_secret(pattern: str) -> None:
    """Check that a pattern of shards, whose index keeps their addresses, has no secret in it.

    Raises:
        UserError: If it has one.
    """
    for address in pattern.split("::"):
        if (secret := find_secret(address)) is not None:
            shown = without_secrets(address)
            raise UserError(
                f"the address {shown} has {secret}, which the index would show to everybody; {_FIX}"
            )


def job_addresses(job: Job) -> list[tuple[str, str]]:
    """Return every address of a job, with its key."""
    values = job_leaves(job).items()
    texts = ((key, text) for key, text in values if isinstance(text, str) and is_address(text))
    return [(key, address) for key, text in texts for address in text.split("::")]
