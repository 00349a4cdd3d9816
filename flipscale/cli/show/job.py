"""`flipscale show job`."""

from __future__ import annotations

from flipscale.cli.options import AsJson, JobFile, Overrides
from flipscale.terminal import print_json, say


def job(job: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the job after `extends` and overrides, with the file and line of each value that is set."""
    from flipscale.config.loading import load_job_with_origins
    from flipscale.config.resolved import resolved_job

    resolved = resolved_job(*load_job_with_origins(job, overrides or ()))
    if as_json:
        print_json({"job": resolved.document, "origins": resolved.origins})
    else:
        say(resolved.text.rstrip("\n"))
