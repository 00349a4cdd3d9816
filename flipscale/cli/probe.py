"""`flipscale probe`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from flipscale.cli.options import (
    AsJson,
    BaseLr,
    BatchSize,
    Checkpoint,
    Epochs,
    MicroBatch,
    Results,
    Seed,
    TestSet,
    TrainSet,
)
from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.transfer.image_features import FeatureKind
    from flipscale.transfer.lars_probe import LarsRecipe
    from flipscale.transfer.linear_probe import ProbeSettings

_METHODS = ("lbfgs", "lars")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The arguments and options of `flipscale probe`."""

    checkpoint: Checkpoint
    train: TrainSet
    test: TestSet
    method: Annotated[str, typer.Option(help="lbfgs, as CLIP, or lars, as the FLIP paper.")] = "lbfgs"
    features: Annotated[
        str, typer.Option(help="pooled: before the projection; embedding: what zero-shot compares.")
    ] = "pooled"
    c: Annotated[
        str | None,
        typer.Option(
            help="lbfgs: inverse strength of the L2 penalty, or `sweep`; default: 0.316.",
            show_default=False,
        ),
    ] = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    base_lr: BaseLr = None
    micro_batch: MicroBatch = 64
    seed: Seed = 0
    out: Results = None
    as_json: AsJson = False


def probe(options: ProbeOptions) -> None:
    """Train a linear classifier on frozen image features, and score it."""
    from flipscale.cli.classifier_scores import joined_world, print_scores
    from flipscale.cli.console import task_bars
    from flipscale.cli.results import write_results
    from flipscale.files import check_writable
    from flipscale.interop.load_model import load_model
    from flipscale.transfer.labelled_images import list_train_test
    from flipscale.transfer.linear_probe import probe as train_probe
    from flipscale.transfer.logistic_probe import enable_gpu_fits

    settings = _settings(options)
    out = options.out

    enable_gpu_fits()
    with joined_world() as world:
        # Before the slow work: what cannot be written.
        if out is not None:
            world.lead(lambda: check_writable(out))
        trained = load_model(options.checkpoint, world)
        sets = list_train_test(options.train, options.test, world)
        with task_bars(shown=world.leads) as progress:
            results = train_probe(trained, sets, settings, world, progress)
    if results is None:
        return

    print_scores(results, as_json=options.as_json)
    if out is not None:
        write_results(results, out)


def _settings(options: ProbeOptions) -> ProbeSettings:
    """Return the settings that the options stand for.

    Raises:
        UserError: If an option has a value that it cannot have, or does not belong to the method.
    """
    from flipscale.transfer.image_features import FEATURE_KINDS
    from flipscale.transfer.linear_probe import ProbeSettings
    from flipscale.transfer.logistic_probe import LogisticRecipe

    _check_choice("method", options.method, _METHODS)
    _check_choice("features", options.features, FEATURE_KINDS)
    features = cast("FeatureKind", options.features)

    if options.method == "lars":
        if options.c is not None:
            raise UserError("--c belongs to --method lbfgs; leave it out")
        return ProbeSettings(_lars_recipe(options), features, options.micro_batch)

    if (options.epochs, options.batch_size, options.base_lr) != (None, None, None):
        raise UserError("--epochs, --batch-size and --base-lr belong to --method lars; leave them out")
    recipe = LogisticRecipe(c=_strength(options.c), seed=options.seed)
    return ProbeSettings(recipe, features, options.micro_batch)


def _lars_recipe(options: ProbeOptions) -> LarsRecipe:
    from flipscale.cli.classifier_scores import change_recipe
    from flipscale.transfer.lars_probe import LarsRecipe

    recipe = LarsRecipe()
    passes = change_recipe(
        recipe.passes,
        epochs=options.epochs,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        seed=options.seed,
    )
    return change_recipe(recipe, passes=passes, base_lr=options.base_lr)


def _strength(c: str | None) -> float | None:
    """Return the value of `--c`: the recipe's if it is not given, None for a sweep."""
    from flipscale.transfer.logistic_probe import LogisticRecipe

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
        nearest = difflib.get_close_matches(value, choices, n=1, cutoff=0.0)[0]
        raise UserError(f"--{option} is {value!r}; give {' or '.join(choices)} (did you mean {nearest}?)")
