"""Validation images with the captions that the newest checkpoint puts nearest to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flipscale.config import Job
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import join_world
from flipscale.errors import UserError
from flipscale.evaluation.class_sets import rooted
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.nearest_captions import ExampleImage, NearestCaptions, examples, nearest_captions
from flipscale.interop.load_model import load_model
from flipscale.runs.directory import RunDirectory

_IMAGES = 6
_PICTURE_SIDE = 224  # pixels


class RetrievalExample(NamedTuple):
    """A validation image with its nearest captions."""

    example: ExampleImage
    nearest: NearestCaptions


def read_retrieval_examples(
    run: RunDirectory, job: Job, *, has_checkpoint: bool, report: Callable[[str], None]
) -> list[RetrievalExample]:
    """Encode the first images of the job's first retrieval set with the newest checkpoint.

    Args:
        run: The run.
        job: The job of the run.
        has_checkpoint: Whether the run has a committed checkpoint.
        report: A function that is called with a short description of each step that takes time.

    Raises:
        UserError: If the job names no retrieval set, a checkpoint is missing, or either cannot be read.
    """
    if not job.evaluation.retrieval:
        raise UserError("the job names no retrieval set: set evaluation.retrieval")
    if not has_checkpoint:
        raise UserError("there is no checkpoint yet; wait for the first one")

    # Read the images before the checkpoint: a set that is not reachable is noticed sooner.
    shards = next(iter(rooted(job.evaluation).retrieval.values()))
    shown = examples(shards, _IMAGES, _PICTURE_SIDE)

    report("encoding retrieval examples with the newest checkpoint")
    world = join_world(Placement())
    trained = load_model(run.path, world)
    encoder = Encoder(trained.model, trained.tokenizer, trained.model.spec.vision.image_size, world)
    nearest = nearest_captions(encoder, shards, _IMAGES)

    return [RetrievalExample(*pair) for pair in zip(shown, nearest, strict=False)]
