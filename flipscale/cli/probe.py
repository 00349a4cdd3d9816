"""`flipscale probe`."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from flipscale.cli.classifier import LONGEST_WAIT, chosen, list_sets, show_scores, shown_progress
from flipscale.cli.results import write_results
from flipscale.data.samples.stream import default_workers
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.errors import UserError
from flipscale.evaluation.datasets import Decoding
from flipscale.files import check_writable
from flipscale.interop.load_model import load_model
from flipscale.transfer.augmented_batches import TrainingViews
from flipscale.transfer.classifier import (
    FEATURES,
    FeatureKind,
    ImageFeatures,
    Progress,
    encode_set,
    score,
)
from flipscale.transfer.labelled_images import LabelledImages
from flipscale.transfer.lars_probe import LarsRecipe, train_lars_head
from flipscale.transfer.logistic_probe import Logistic, enable_gpu_fits, fit

METHODS = ("lbfgs", "lars")


def probe_checkpoint(
    checkpoint: Path,
    train: str,
    test: str,
    method: str,
    features: str,
    c: str | None,
    epochs: int | None,
    batch_size: int | None,
    base_lr: float | None,
    micro_batch: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
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
