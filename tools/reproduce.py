"""The paper's tables 1 and 8 and figure 1, trained by the same orchestrator that runs them on a cluster.

    python tools/reproduce.py table1 --scale toy               # minutes a cell, on this machine
    python tools/reproduce.py table8 --scale paper --site slurm/my_cluster.yaml --imagenet /data/imagenet/val

Every cell is a job of `jobs/` with overrides. A finished run is not repeated and an interrupted one goes on,
so the same command is given again until all are done. What is there so far is written as the paper's tables
beside ours, as Markdown and JSON, with the error over seeds and whether the paper's order holds.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.cells import experiment
from reproduction.experiments import EXPERIMENTS

from flipscale.errors import RunError, StoppedEarly, UserError

EXIT_FAILED, EXIT_USER, EXIT_STOPPED = 1, 2, 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 done, 2 wrong input, 75 stopped with work left, 1 where a run failed."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    given = parser().parse_intermixed_args(arguments)
    try:
        chosen = experiment(given.experiment, EXPERIMENTS)
        # Here: torch is imported, which --help and wrong names need not wait for.
        from reproduction.session import Options, Session

        options = Options(
            scale=given.scale,
            out=given.out,
            jobs=given.jobs,
            seeds=given.seeds,
            site=given.site,
            imagenet=given.imagenet,
            overrides=given.overrides,
            dry_run=given.dry_run,
        )
        Session(chosen, options).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except StoppedEarly as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("experiment", help=", ".join(known.name for known in EXPERIMENTS))
    made.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of every job, as for `flipscale train`"
    )
    made.add_argument("--scale", choices=("toy", "paper"), required=True)
    made.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="default: %(default)s")
    made.add_argument("--jobs", type=int, help="runs at once; by default one a core here, all on Slurm")
    made.add_argument(
        "--seeds", type=int, help="of every run; by default 3 at the toy scale, 1 at the paper's"
    )
    made.add_argument("--site", type=Path, help="site file, as in `flipscale submit`")
    made.add_argument(
        "--imagenet",
        type=Path,
        default=Path("/datasets/imagenet/val"),
        help="paper scale: the validation set, a folder a class or shards (default: %(default)s)",
    )
    made.add_argument(
        "--dry-run", action="store_true", help="only show the runs, their budget and their time"
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
