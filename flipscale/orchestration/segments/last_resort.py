"""The program with which a batch script has its job started again, if scontrol did not do it.

python -m flipscale.orchestration.segments.last_resort RUN
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from flipscale.distributed.placement import read_placement
from flipscale.errors import UserError
from flipscale.orchestration.cluster.script_end import REFUSED
from flipscale.orchestration.segments.managed_job import managed_job
from flipscale.runs.directory import existing_run


def main() -> None:
    """Have the job started again from which this runs; exits with `REFUSED` if it does not start again."""
    logging.basicConfig(level=logging.INFO, format="flipscale: %(message)s", stream=sys.stderr)

    run = existing_run(Path(sys.argv[1]).resolve())
    managed = managed_job(run, read_placement())
    if managed is None:
        sys.exit(f"flipscale: job of {run.path} not found in submissions.jsonl; run `flipscale submit` again")

    if not managed.try_start_again():
        sys.exit(REFUSED)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
