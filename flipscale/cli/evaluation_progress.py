"""The evaluation of `flipscale eval`, with its progress on the terminal."""

from __future__ import annotations

from flipscale.cli.console import image_counts
from flipscale.config import Evaluation
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.document import EvaluationDocument
from flipscale.evaluation.evaluate import evaluate
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.masked_views import MaskedEncoder
from flipscale.interop.loaded_model import LoadedModel


def make_encoder(trained: LoadedModel, world: World, mask_ratio: float | None, *, ensemble: bool) -> Encoder:
    """Return the encoder of a model, for whole images or for masked views.

    Args:
        trained: The model and its tokenizer.
        world: The processes that share the work.
        mask_ratio: Share of the patches that is hidden; None for whole images.
        ensemble: Whether to average the views that together show all patches.

    Raises:
        UserError: If an ensemble has no mask ratio, or the ratio is out of range.
    """
    if mask_ratio is None and ensemble:
        raise UserError("--ensemble averages masked views; say with --mask-ratio how much each one hides")

    vision = trained.model.spec.vision
    views = None
    if mask_ratio is not None:
        views = MaskedEncoder(trained.model.encode_image, mask_ratio, vision.patches, ensemble)

    return Encoder(trained.model, trained.tokenizer, vision.image_size, world, views)


def evaluate_with_progress(
    encoder: Encoder, sets: Evaluation, samples_seen: int | None, batch_size: int
) -> EvaluationDocument:
    """Evaluate a model; the leading process counts the images on its terminal."""
    world = encoder.world
    with image_counts((*sets.zero_shot, *sets.retrieval), shown=world.leads) as show:
        return evaluate(
            encoder,
            sets,
            samples_seen=samples_seen,
            batch_size=batch_size,
            progress=lambda name, images: show(name, images * world.size),
        )
