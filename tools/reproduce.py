"""Reproduce the paper's tables 1 and 8 and figure 1, with the same orchestrator as on a cluster.

    python tools/reproduce.py table1 --scale toy               # minutes per cell, on this machine
    python tools/reproduce.py table8 --scale paper --site slurm/my_cluster.yaml --imagenet /data/imagenet/val

Every cell is a job of `jobs/` with overrides. A finished run is not repeated and an interrupted one resumes,
so run the same command again until all are done. The results so far are written next to the paper's figures,
as Markdown and JSON, with the error over seeds and whether the paper's order holds.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.cells import find_experiment
from reproduction.experiments import EXPERIMENTS

from flipscale.cli.app import EXIT_FAILED, EXIT_STOPPED, EXIT_USER
from flipscale.errors import RunError, StoppedEarly, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment, and return the exit code.

    The code is 0 if it is done, 2 if the input is wrong, 75 if it stopped with work left, 1 if a run failed.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    parsed = make_parser().parse_intermixed_args(arguments)

    try:
        experiment = find_experiment(parsed.experiment, EXPERIMENTS)
        # Import it here: it imports torch, for which --help and wrong names should not wait.
        from reproduction.session import Options, Session

        options = Options(
            scale=parsed.scale,
            out=parsed.out,
            jobs=parsed.jobs,
            seeds=parsed.seeds,
            site=parsed.site,
            imagenet=parsed.imagenet,
            overrides=parsed.overrides,
            dry_run=parsed.dry_run,
        )
        Session(experiment, options).run()
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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("experiment", help=", ".join(known.name for known in EXPERIMENTS))
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides of every job, as for `flipscale train`"
    )
    parser.add_argument("--scale", choices=("toy", "paper"), required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, help="runs at once; default: one per core here, all on Slurm")
    parser.add_argument(
        "--seeds", type=int, help="seeds of every run; default: 3 at the toy scale, 1 at the paper's"
    )
    parser.add_argument("--site", type=Path, help="site file, as in `flipscale submit`")
    parser.add_argument(
        "--imagenet",
        type=Path,
        default=Path("/datasets/imagenet/val"),
        help="paper scale: the validation set, a folder per class or shards (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show the runs, their budget and their time"
    )

    return parser


if __name__ == "__main__":
    sys.exit(main())
