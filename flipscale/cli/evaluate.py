"""`flipscale eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from flipscale.cli.evaluation_sets import SetOptions, chosen_sets, sets_of_job, with_root
from flipscale.cli.options import AsJson, Checkpoint, EncodedBatch, Results
from flipscale.errors import UserError
from flipscale.terminal import print_json


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SetOptions):
    """The arguments and options of `flipscale eval`."""

    checkpoint: Checkpoint
    mask_ratio: Annotated[
        float | None, typer.Option(help="Hide this share of each image's patches.", show_default=False)
    ] = None
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average the views that together show all patches.")
    ] = False
    batch_size: EncodedBatch = 64
    out: Results = None
    as_json: AsJson = False


def evaluate(options: EvaluateOptions) -> None:
    """Measure zero-shot classification and retrieval, on the sets named here or on those of the run's job."""
    from flipscale.cli.evaluation_progress import evaluate_with_progress, make_encoder
    from flipscale.cli.evaluation_tables import print_evaluation
    from flipscale.cli.results import write_results
    from flipscale.distributed.placement import read_placement
    from flipscale.distributed.world import join_world, leave_world
    from flipscale.evaluation.evaluate import check_sets
    from flipscale.files import check_writable
    from flipscale.interop.load_model import load_model

    chosen = chosen_sets(options)
    out = options.out
    world = join_world(read_placement())
    try:
        # Before the slow work: what cannot be written, and wrong sets.
        if out is not None:
            world.lead(lambda: check_writable(out))
        trained = load_model(options.checkpoint, world)
        sets = with_root(chosen or sets_of_job(trained.job), options)
        if not sets.zero_shot and not sets.retrieval:
            raise UserError(
                f"the job of {options.checkpoint} names no evaluation sets; give --zero-shot, --retrieval "
                "or --sets"
            )
        world.lead(lambda: check_sets(sets))

        document = evaluate_with_progress(
            make_encoder(trained, world, options.mask_ratio, ensemble=options.ensemble),
            sets,
            trained.samples_seen,
            options.batch_size,
        )
    finally:
        leave_world()
    if not world.leads:
        return

    if options.as_json:
        print_json(document)
    else:
        print_evaluation(document)
    if out is not None:
        write_results(document, out)
