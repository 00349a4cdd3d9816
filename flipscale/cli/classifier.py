"""What `flipscale probe` and `flipscale finetune` have in common."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flipscale.cli.console import print_table
from flipscale.distributed.world import World
from flipscale.formatting import format_interval, format_percent
from flipscale.transfer.augmented_batches import Passes
from flipscale.transfer.classifier import Progress
from flipscale.transfer.finetune import FinetuneRecipe
from flipscale.transfer.labelled_images import LabelledImages, check_same_classes, labelled_images
from flipscale.transfer.lars_probe import LarsRecipe

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
