"""What `flipscale probe` and `flipscale finetune` have in common."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flipscale.cli.classifier_options import FinetuneOptions, ProbeOptions
from flipscale.cli.console import print_table
from flipscale.cli.results import write_results
from flipscale.data.samples.stream import default_workers
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.errors import UserError
from flipscale.evaluation.datasets import Decoding
from flipscale.files import check_writable
from flipscale.formatting import format_interval, format_percent
from flipscale.interop.load_model import load_model
from flipscale.transfer.augmented_batches import Passes, TrainingViews
from flipscale.transfer.classifier import FEATURES, FeatureKind, ImageFeatures, Progress, encode_set, score
from flipscale.transfer.finetune import Classifier, FinetuneRecipe, finetune, layer_decayed, rand_augment
from flipscale.transfer.finetune_state import FinetuneState
from flipscale.transfer.labelled_images import LabelledImages, check_same_classes, labelled_images
from flipscale.transfer.lars_probe import LarsRecipe, train_lars_head
from flipscale.transfer.logistic_probe import Logistic, enable_gpu_fits, fit

METHODS = ("lbfgs", "lars")

# One process lists the sets, for ImageNet on a slow file system many minutes; the others wait.
LONGEST_WAIT = timedelta(hours=2)

Recipe = TypeVar("Recipe", Passes, LarsRecipe, FinetuneRecipe)


def list_sets(train: str, test: str, world: World) -> tuple[LabelledImages, LabelledImages]:
    """Both sets, listed by the leading process. Raises UserError as `labelled_images` does."""

    def both() -> tuple[LabelledImages, LabelledImages]:
        sets = labelled_images(train), labelled_images(test)
        check_same_classes(*sets)
        return sets

    return world.lead(both)


def chosen(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with what the command line says instead; None leaves what it has."""
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


@contextmanager
def shown_progress(world: World) -> Iterator[Progress]:
    """A bar for each thing that is done, on the leading process's terminal."""
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (world.leads and sys.stderr.isatty()),
    ) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=min(done, total), total=total)

        yield show


def show_scores(document: dict[str, Any], as_json: bool) -> None:
    """Print the results of either command."""
    if as_json:
        print(json.dumps(document, indent=2))
        return
    test = document["test"]
    figures = [
        f"{format_percent(test[name])} ({format_interval(interval)})"
        for name, interval in test["intervals"].items()
    ]
    print_table(
        [
            document["task"].replace("_", " "),
            "images",
            "classes",
            "top-1",
            "top-5",
            "mean per class",
            "skipped",
        ],
        [[document["method"], str(test["samples"]), str(test["classes"]), *figures, str(test["skipped"])]],
    )


def run_probe(options: ProbeOptions) -> None:
    """Train and score a linear probe."""
    checkpoint, train, test = options.checkpoint, options.train, options.test
    method, features, c, seed = options.method, options.features, options.c, options.seed
    epochs, batch_size, base_lr = options.epochs, options.batch_size, options.base_lr
    micro_batch, out, as_json = options.micro_batch, options.out, options.as_json
    _check_choice("method", method, METHODS)
    _check_choice("features", features, FEATURES)
    if method == "lbfgs" and (epochs, batch_size, base_lr) != (None, None, None):
        raise UserError("--epochs, --batch-size and --base-lr belong to --method lars; leave them out")
    if method == "lars" and c is not None:
        raise UserError("--c belongs to --method lbfgs; leave it out")
    logistic = Logistic(c=_strength(c), seed=seed)
    recipe = LarsRecipe()
    passes = chosen(recipe.passes, epochs=epochs, batch_size=batch_size, micro_batch=micro_batch, seed=seed)
    recipe = chosen(recipe, passes=passes, base_lr=base_lr)

    enable_gpu_fits()
    world = join_world(read_placement(), LONGEST_WAIT)
    try:
        if out is not None:
            world.lead(lambda: check_writable(out))
        trained = load_model(checkpoint, world)
        sets = list_sets(train, test, world)
        network = ImageFeatures(trained.model, cast(FeatureKind, features))
        decoding = Decoding(trained.model.spec.vision.image_size, micro_batch)
        with shown_progress(world) as progress:
            if method == "lbfgs":
                found = _logistic(network, sets, decoding, logistic, world, progress)
            else:
                found = _lars(network, sets, decoding, recipe, world, progress)
    finally:
        leave_world()
    if found is None:
        return
    document = {
        "task": "linear_probe",
        "method": method,
        "samples_seen": trained.samples_seen,
        **found,
    }
    document["settings"] = {"features": features, **document["settings"]}
    show_scores(document, as_json)
    if out is not None:
        write_results(document, out)


def _logistic(
    network: ImageFeatures,
    sets: tuple[LabelledImages, LabelledImages],
    decoding: Decoding,
    settings: Logistic,
    world: World,
    progress: Progress,
) -> dict[str, Any] | None:
    """What differs in the document; None on all but the leading process, which fits alone."""
    train, test = (encode_set(network, images, decoding, world, progress) for images in sets)
    if not world.leads:
        return None
    fits = settings.most_fits
    fitted = fit(
        train.outputs, train.labels, test.outputs, settings, lambda done: progress("fitting", done, fits)
    )
    return {
        "settings": {"c": fitted.c, "swept": settings.c is None, "max_iter": settings.max_iter},
        "iterations": fitted.iterations,
        "converged": fitted.converged,
        "train": {"data": sets[0].data, "samples": len(train.labels), "skipped": train.skipped.count},
        "test": {"data": sets[1].data, **score(fitted.logits, test)},
    }


def _lars(
    network: ImageFeatures,
    sets: tuple[LabelledImages, LabelledImages],
    decoding: Decoding,
    recipe: LarsRecipe,
    world: World,
    progress: Progress,
) -> dict[str, Any] | None:
    train, test = sets
    recipe.passes.check(len(train.samples), world.size)
    workers = default_workers(world.local_size)
    views = TrainingViews(train, recipe.passes, decoding.image_size, world, workers)
    head = train_lars_head(network, views, train.classes, recipe, world, progress)
    seen = encode_set(network, test, decoding, world, progress)
    if not world.leads:
        return None
    return {
        "settings": asdict(recipe),
        "train": {"data": train.data, "samples": len(train.samples)},
        "test": {"data": test.data, **score(head(seen.outputs).detach(), seen)},
    }


def _strength(c: str | None) -> float | None:
    """Of `--c`; None for a sweep."""
    if c is None:
        return Logistic().c
    if c == "sweep":
        return None
    try:
        return float(c)
    except ValueError:
        raise UserError(f"--c is {c!r}; give a number above 0, such as 0.316, or `sweep`") from None


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.0)[0]
        raise UserError(f"--{option} is {value!r}; give {' or '.join(choices)} (did you mean {near}?)")


def run_finetune(options: FinetuneOptions) -> None:
    """Train and score a fine-tuned classifier."""
    checkpoint, train, test, out = options.checkpoint, options.train, options.test, options.out
    epochs, batch_size, base_lr = options.epochs, options.batch_size, options.base_lr
    drop_path, micro_batch = options.drop_path, options.micro_batch
    seed, as_json = options.seed, options.as_json
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
