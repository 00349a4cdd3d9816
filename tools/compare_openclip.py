"""Compare a run with the published OpenCLIP model that is nearest to it: `tools/compare_openclip.py RUN`.

The nearest model has towers of the same size and, among these, the nearest number of samples seen (a factor
of 2 counts as much in either direction). Its weights come from --weights, or from an earlier download by
open_clip on this machine. The page is that of `flipscale compare`. With --list, the published models are only
listed.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from flipscale.cli.compare import CompareOptions, compare
from flipscale.cli.console import print_table
from flipscale.errors import UserError
from flipscale.formatting import format_count, format_percent
from flipscale.interop.import_source import find_import_source
from flipscale.planning.flops import parameter_count
from flipscale.planning.plan import model_shape
from flipscale.reporting.comparison.reference import PublishedModel, published_models
from flipscale.runs.directory import existing_run, recorded_job
from flipscale.runs.manifest import committed_samples

_FAMILIES = ("CLIP", "OpenCLIP", "DataComp")  # open_clip loads their weights by a tag


def nearest(parameters: int, samples_seen: int) -> list[PublishedModel]:
    """Return the published models, nearest first.

    Args:
        parameters: Parameters of the run's model.
        samples_seen: Samples that the run has trained on.
    """

    def distance(model: PublishedModel) -> tuple[float, float]:
        size = abs(math.log(model.parameters_m * 1e6 / parameters))
        # FLIP's text towers are smaller than OpenCLIP's of the same name: a quarter less is still one size.
        return round(size / math.log(1.5)), abs(math.log(model.samples_seen / max(1, samples_seen)))

    return sorted((m for m in published_models() if m.family in _FAMILIES), key=distance)


def on_this_machine(model: PublishedModel) -> bool:
    """Return whether open_clip knows the tag of the weights and has downloaded them already."""
    try:
        find_import_source(model.model, None, model.weights, random=False)
    except UserError:
        return False

    return True


def main() -> None:
    """Read the command line, and compare; exit with 2 if the input is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--weights", type=Path, help="file with the weights of the nearest published model")
    parser.add_argument("--list", action="store_true", help="only list published models, nearest first")
    parser.add_argument("--out", type=Path, help="where to write; default: reports/RUN_openclip")
    parser.add_argument("--sets", type=Path, help="file with evaluation sets; default: the job's")
    parser.add_argument("--root", help="where the data of the sets is stored")
    parser.add_argument("--batch-size", type=int, default=64)

    given = parser.parse_args()
    try:
        compare_nearest(given)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def compare_nearest(given: argparse.Namespace) -> None:
    """Compare the run with the nearest published model whose weights are here, or only list the models.

    Raises:
        UserError: If there are no weights of a published model on this machine, or the run is wrong.
    """
    run = existing_run(given.run)
    parameters = parameter_count(model_shape(recorded_job(run))).total
    candidates = nearest(parameters, committed_samples(run))
    if given.list:
        rows = [
            [
                model.model,
                model.weights,
                model.data,
                format_count(model.samples_seen),
                "" if model.imagenet_top1 is None else format_percent(model.imagenet_top1),
            ]
            for model in candidates
        ]
        print_table(["model", "weights", "data", "samples seen", "ImageNet top-1"], rows)
        return

    if given.weights is not None:
        chosen = f"{candidates[0].model}:{given.weights}"
    else:
        available = next((model for model in candidates if on_this_machine(model)), None)
        if available is None:
            raise UserError(
                f"no published weights are on this machine; the nearest are {candidates[0].weights} of "
                f"{candidates[0].model}: download them with open_clip, or give a file with --weights"
            )
        chosen = f"{available.model}:{available.weights}"

    print(f"{given.run} compared with {chosen}")
    out = given.out or Path("reports") / f"{run.path.name}_openclip"
    compare(
        CompareOptions(
            models=[str(given.run), chosen],
            out=out,
            sets=given.sets,
            root=given.root,
            batch_size=given.batch_size,
        )
    )


if __name__ == "__main__":
    main()
