"""What `flipscale probe` and `flipscale finetune` have in common."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flipscale.cli.classifier_options import FinetuneOptions, ProbeOptions
from flipscale.cli.console import print_table
from flipscale.cli.results import write_results
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.errors import UserError
from flipscale.files import check_writable
from flipscale.formatting import format_interval, format_percent
from flipscale.interop.load_model import load_model
from flipscale.transfer.finetune import FinetuneJob, finetune
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.finetune_state import FinetuneState
from flipscale.transfer.image_features import FEATURE_KINDS, FeatureKind, ProgressCallback
from flipscale.transfer.labelled_images import list_train_test
from flipscale.transfer.lars_probe import LarsRecipe
from flipscale.transfer.linear_probe import ProbeSettings, probe
from flipscale.transfer.logistic_probe import LogisticRecipe, enable_gpu_fits
from flipscale.transfer.passes import Passes
from flipscale.transfer.results import ClassifierResults

METHODS = ("lbfgs", "lars")

# One process lists the sets, for ImageNet on a slow file system many minutes; the others wait.
LONGEST_WAIT = timedelta(hours=2)

Recipe = TypeVar("Recipe", Passes, LarsRecipe, FinetuneRecipe)


def chosen(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with what the command line says instead; None leaves what it has."""
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


@contextmanager
def shown_progress(world: World) -> Iterator[ProgressCallback]:
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


def show_scores(document: ClassifierResults, as_json: bool) -> None:
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
    settings = _probe_settings(options)

    enable_gpu_fits()
    world = join_world(read_placement(), LONGEST_WAIT)
    try:
        out = options.out
        if out is not None:
            world.lead(lambda: check_writable(out))
        trained = load_model(options.checkpoint, world)
        sets = list_train_test(options.train, options.test, world)
        with shown_progress(world) as progress:
            results = probe(trained, sets, settings, world, progress)
    finally:
        leave_world()
    if results is None:
        return

    show_scores(results, options.as_json)
    if out is not None:
        write_results(results, out)


def _probe_settings(options: ProbeOptions) -> ProbeSettings:
    """Return the settings that the options stand for.

    Raises:
        UserError: If an option has a value that it cannot have, or does not belong to the method.
    """
    _check_choice("method", options.method, METHODS)
    _check_choice("features", options.features, FEATURE_KINDS)
    changes = (options.epochs, options.batch_size, options.base_lr)
    if options.method == "lbfgs" and changes != (None, None, None):
        raise UserError("--epochs, --batch-size and --base-lr belong to --method lars; leave them out")
    if options.method == "lars" and options.c is not None:
        raise UserError("--c belongs to --method lbfgs; leave it out")

    features = cast("FeatureKind", options.features)
    if options.method == "lbfgs":
        recipe = LogisticRecipe(c=_strength(options.c), seed=options.seed)
        return ProbeSettings(recipe, features, options.micro_batch)

    recipe = LarsRecipe()
    passes = chosen(
        recipe.passes,
        epochs=options.epochs,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        seed=options.seed,
    )
    return ProbeSettings(
        chosen(recipe, passes=passes, base_lr=options.base_lr), features, options.micro_batch
    )


def _strength(c: str | None) -> float | None:
    """Of `--c`; None for a sweep."""
    if c is None:
        return LogisticRecipe().c
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
    recipe = FinetuneRecipe()
    passes = chosen(
        recipe.passes,
        epochs=options.epochs,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        seed=options.seed,
    )
    recipe = chosen(recipe, passes=passes, base_lr=options.base_lr, drop_path=options.drop_path)

    world = join_world(read_placement(), LONGEST_WAIT)
    try:
        trained = load_model(options.checkpoint, world)
        sets = list_train_test(options.train, options.test, world)
        job = FinetuneJob(options.checkpoint, options.out, recipe)
        with shown_progress(world) as progress:
            results = finetune(trained, sets, job, world, progress)
    finally:
        leave_world()
    if results is None:
        return

    show_scores(results, options.as_json)
    FinetuneState(options.out).write_results(results)
