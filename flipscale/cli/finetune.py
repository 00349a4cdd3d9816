"""`flipscale finetune`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from flipscale.cli.classifier import LONGEST_WAIT, chosen, list_sets, show_scores, shown_progress
from flipscale.data.samples.stream import default_workers
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.errors import UserError
from flipscale.evaluation.datasets import Decoding
from flipscale.interop.load_model import load_model
from flipscale.transfer.augmented_batches import TrainingViews
from flipscale.transfer.classifier import encode_set, score
from flipscale.transfer.finetune import (
    Classifier,
    FinetuneRecipe,
    finetune,
    layer_decayed,
    rand_augment,
)
from flipscale.transfer.finetune_state import FinetuneState


def finetune_checkpoint(
    checkpoint: Path,
    train: str,
    test: str,
    out: Path,
    epochs: int | None,
    batch_size: int | None,
    base_lr: float | None,
    drop_path: float | None,
    micro_batch: int,
    seed: int,
    as_json: bool,
) -> None:
    recipe = FinetuneRecipe()
    passes = chosen(recipe.passes, epochs=epochs, batch_size=batch_size, micro_batch=micro_batch, seed=seed)
    recipe = chosen(recipe, passes=passes, base_lr=base_lr, drop_path=drop_path)
    if not 0 <= recipe.drop_path < 1:
        raise UserError(f"--drop-path is {recipe.drop_path:g}; give a share from 0 to below 1")

    world = join_world(read_placement(), LONGEST_WAIT)
    try:
        trained = load_model(checkpoint, world)
        images, test_images = list_sets(train, test, world)
        passes.check(len(images.samples), world.size, multiple=2)
        settings = {
            "checkpoint": str(checkpoint),
            "samples_seen": trained.samples_seen,
            "train": train,
            "test": test,
            **asdict(recipe),
        }
        state = FinetuneState(out)
        world.lead(lambda: state.claim(settings))
        decoding = Decoding(trained.model.spec.vision.image_size, micro_batch)
        workers = default_workers(world.local_size)
        change = rand_augment(recipe, trained.model)
        views = TrainingViews(images, passes, decoding.image_size, world, workers, change)
        model = Classifier(trained.model, images.classes, recipe.drop_path, seed)
        optimizer = layer_decayed(model, recipe)
        done = _agreed(state.load(model, optimizer, views.steps), out, world)

        def save(epochs: int) -> None:
            world.lead(lambda: state.save(model, optimizer, epochs))

        with shown_progress(world) as progress:
            finetune(
                model, optimizer, views, recipe, world, first_epoch=done, after_epoch=save, progress=progress
            )
            seen = encode_set(model, test_images, decoding, world, progress)
    finally:
        leave_world()
    if not world.leads:
        return
    document = {
        "task": "finetune",
        "method": "adamw",
        "samples_seen": trained.samples_seen,
        "settings": settings,
        "train": {"data": train, "samples": len(images.samples)},
        "test": {"data": test, **score(seen.outputs, seen)},
    }
    show_scores(document, as_json)
    state.write_results(document)


def _agreed(epochs: int, out: Path, world: World) -> int:
    """The epochs that every process found done."""
    found = world.gather(epochs)
    if len(set(found)) > 1:
        raise UserError(
            f"the processes find from {min(found)} to {max(found)} epochs done in {out}, since their nodes "
            "do not see the same directory; give an --out on a file system that all nodes share"
        )
    return epochs
