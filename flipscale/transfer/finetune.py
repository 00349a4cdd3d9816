"""Fine-tuning the image tower with a linear classifier on it (FLIP, table 12; otherwise as MAE's code)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flipscale.data.samples.stream import default_workers
from flipscale.distributed.world import World
from flipscale.evaluation.decoding import Decoding
from flipscale.interop.loaded_model import LoadedModel
from flipscale.transfer.augmented_batches import AugmentedBatches
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.finetune_state import FinetuneSettings, FinetuneState
from flipscale.transfer.finetune_training import new_learner, train_tower
from flipscale.transfer.image_features import ProgressCallback, encode_set, no_progress
from flipscale.transfer.labelled_images import TrainTestSets
from flipscale.transfer.rand_augment import rand_augment
from flipscale.transfer.results import ClassifierResults, score


@dataclass(frozen=True)
class FinetuneJob:
    """What a fine-tuning trains, and where it keeps its state."""

    checkpoint: Path
    """Where the model was loaded from; it goes into the settings of the directory."""
    out: Path
    """Directory of the fine-tuning; one that was interrupted is resumed."""
    recipe: FinetuneRecipe = FinetuneRecipe()  # noqa: RUF009


def finetune(
    trained: LoadedModel,
    sets: TrainTestSets,
    job: FinetuneJob,
    world: World,
    progress: ProgressCallback = no_progress,
) -> ClassifierResults | None:
    """Train the tower of a model, in place, with a classifier, and score them on the test set.

    All processes of `world` call this function together. It saves weights and optimizer state after every
    epoch to `job.out`; the caller keeps the results with `FinetuneState.write_results`.

    Returns:
        The results on the leading process; None on all others.

    Raises:
        UserError: If the recipe does not fit the sets or the number of processes, the directory holds
            anything else, a set cannot be read, or the training diverges.
        RunError: If the checkpoint cannot be written.
    """
    recipe = job.recipe
    recipe.passes.check(len(sets.train.samples), world.size, multiple=2)

    # Claim the directory before anything is computed: it may belong to another fine-tuning.
    settings = FinetuneSettings(
        str(job.checkpoint), trained.samples_seen, sets.train.data, sets.test.data, recipe
    )
    state = FinetuneState(job.out)
    world.lead(lambda: state.claim(settings))

    batches = _training_batches(trained, sets, recipe, world)
    learner = new_learner(trained.model, sets.train.classes, recipe)
    first_epoch = state.resume(learner.model, learner.optimizer, batches.steps, world)

    def save(epochs: int) -> None:
        world.lead(lambda: state.save(learner.model, learner.optimizer, epochs))

    train_tower(
        learner,
        batches,
        recipe,
        world,
        first_epoch=first_epoch,
        after_epoch=save,
        progress=progress,
    )
    decoding = Decoding(trained.model.spec.vision.image_size, recipe.passes.micro_batch)
    encoded = encode_set(learner.model, sets.test, decoding, world, progress)
    if not world.leads:
        return None

    return {
        "task": "finetune",
        "method": "adamw",
        "samples_seen": trained.samples_seen,
        "settings": settings.document(),
        "train": {"data": sets.train.data, "samples": len(sets.train.samples)},
        "test": score(sets.test.data, encoded.outputs, encoded),
    }


def _training_batches(
    trained: LoadedModel, sets: TrainTestSets, recipe: FinetuneRecipe, world: World
) -> AugmentedBatches:
    return AugmentedBatches(
        sets.train,
        recipe.passes,
        trained.model.spec.vision.image_size,
        world,
        default_workers(world.cores),
        rand_augment(recipe.rand_augment, trained.model),
    )
