"""`flipscale eval`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.evaluation_sets import SetOptions, chosen_sets, with_root
from flipscale.cli.options import AsJson, Checkpoint, EncodedBatch, Results
from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.config import Evaluation
    from flipscale.distributed.world import World
    from flipscale.evaluation.document import EvaluationDocument
    from flipscale.evaluation.masked_views import MaskedEncoder
    from flipscale.interop.loaded_model import LoadedModel


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
        sets = with_root(chosen or _sets_of_job(trained), options)
        if not sets.zero_shot and not sets.retrieval:
            raise UserError(
                f"the job of {options.checkpoint} names no evaluation sets; give --zero-shot, --retrieval "
                "or --sets"
            )
        world.lead(lambda: check_sets(sets))

        document = _evaluated(trained, sets, options, world)
    finally:
        leave_world()
    if not world.leads:
        return

    if options.as_json:
        print(json.dumps(document, indent=2))
    else:
        print_evaluation(document)
    if out is not None:
        write_results(document, out)


def _sets_of_job(trained: LoadedModel) -> Evaluation:
    from flipscale.config import Evaluation

    return Evaluation() if trained.job is None else trained.job.evaluation


def _evaluated(
    trained: LoadedModel, sets: Evaluation, options: EvaluateOptions, world: World
) -> EvaluationDocument:
    """Evaluate the model, with progress on the leading process's terminal."""
    from flipscale.cli.console import image_counts
    from flipscale.evaluation.evaluate import evaluate as evaluate_encoder
    from flipscale.evaluation.features import Encoder

    views = _masked_views(trained, options)
    image_size = trained.model.spec.vision.image_size
    encoder = Encoder(trained.model, trained.tokenizer, image_size, world, views)

    with image_counts((*sets.zero_shot, *sets.retrieval), shown=world.leads) as show:
        return evaluate_encoder(
            encoder,
            sets,
            samples_seen=trained.samples_seen,
            batch_size=options.batch_size,
            progress=lambda name, images: show(name, images * world.size),
        )


def _masked_views(trained: LoadedModel, options: EvaluateOptions) -> MaskedEncoder | None:
    from flipscale.evaluation.masked_views import MaskedEncoder

    if options.mask_ratio is not None:
        patches = trained.model.spec.vision.patches
        return MaskedEncoder(trained.model.encode_image, options.mask_ratio, patches, options.ensemble)
    if options.ensemble:
        raise UserError("--ensemble averages masked views; say with --mask-ratio how much each one hides")
    return None
