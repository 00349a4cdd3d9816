"""What `flipscale probe` and `flipscale finetune` share: recipes from options, and the table of scores."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from flipscale.cli.console import print_table
from flipscale.distributed import placement, world
from flipscale.distributed.world import World
from flipscale.formatting import format_interval, format_percent
from flipscale.terminal import print_json
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.lars_probe import LarsRecipe
from flipscale.transfer.passes import Passes
from flipscale.transfer.results import ClassifierResults

# The other processes wait while the leading one lists the sets: many minutes for ImageNet on a slow disk.
_LONGEST_WAIT = timedelta(hours=2)

_Recipe = TypeVar("_Recipe", Passes, LarsRecipe, FinetuneRecipe)


@contextmanager
def joined_world() -> Generator[World]:
    """Join the processes of the launcher while the block runs."""
    joined = world.join_world(placement.read_placement(), _LONGEST_WAIT)
    try:
        yield joined
    finally:
        world.leave_world()


def change_recipe(recipe: _Recipe, **changes: Passes | float | None) -> _Recipe:
    """Return a recipe with the values of the command line; None leaves the recipe's value."""
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def print_scores(results: ClassifierResults, *, as_json: bool) -> None:
    """Print the results of a probe or a fine-tuning, as a table or as JSON."""
    if as_json:
        print_json(results)
        return

    test = results["test"]
    accuracies = [
        f"{format_percent(accuracy)} ({format_interval((interval[0], interval[1]))})"
        for accuracy, interval in (
            (test["top1"], test["intervals"]["top1"]),
            (test["top5"], test["intervals"]["top5"]),
            (test["mean_per_class"], test["intervals"]["mean_per_class"]),
        )
    ]
    headings = (
        *(results["task"].replace("_", " "), "images", "classes"),
        *("top-1", "top-5", "mean per class", "skipped"),
    )
    counts = [str(test["samples"]), str(test["classes"])]
    print_table(headings, [[results["method"], *counts, *accuracies, str(test["skipped"])]])
