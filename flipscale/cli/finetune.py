"""`flipscale finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.options import (
    AsJson,
    BaseLr,
    BatchSize,
    Checkpoint,
    Epochs,
    MicroBatch,
    Seed,
    TestSet,
    TrainSet,
)

if TYPE_CHECKING:
    from flipscale.transfer.finetune_recipe import FinetuneRecipe


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """The arguments and options of `flipscale finetune`."""

    checkpoint: Checkpoint
    train: TrainSet
    test: TestSet
    out: Annotated[
        Path,
        typer.Option(help="Directory for weights and results; the same command resumes.", show_default=False),
    ]
    epochs: Epochs = None
    batch_size: BatchSize = None
    base_lr: BaseLr = None
    drop_path: Annotated[
        float | None,
        typer.Option(help="Drop rate of the last block; default: the recipe's.", show_default=False),
    ] = None
    micro_batch: MicroBatch = 64
    seed: Seed = 0
    as_json: AsJson = False


def finetune(options: FinetuneOptions) -> None:
    """Train the image tower and a linear classifier on it together, and score them."""
    from flipscale.cli.classifier_scores import joined_world, print_scores
    from flipscale.cli.console import task_bars
    from flipscale.interop.load_model import load_model
    from flipscale.transfer.finetune import FinetuneJob
    from flipscale.transfer.finetune import finetune as train_classifier
    from flipscale.transfer.finetune_state import FinetuneState
    from flipscale.transfer.labelled_images import list_train_test

    job = FinetuneJob(options.checkpoint, options.out, _recipe(options))

    with joined_world() as world:
        trained = load_model(options.checkpoint, world)
        sets = list_train_test(options.train, options.test, world)
        with task_bars(shown=world.leads) as progress:
            results = train_classifier(trained, sets, job, world, progress)
    if results is None:
        return

    print_scores(results, as_json=options.as_json)
    FinetuneState(options.out).write_results(results)


def _recipe(options: FinetuneOptions) -> FinetuneRecipe:
    from flipscale.cli.classifier_scores import change_recipe
    from flipscale.transfer.finetune_recipe import FinetuneRecipe

    recipe = FinetuneRecipe()
    passes = change_recipe(
        recipe.passes,
        epochs=options.epochs,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        seed=options.seed,
    )
    return change_recipe(recipe, passes=passes, base_lr=options.base_lr, drop_path=options.drop_path)
