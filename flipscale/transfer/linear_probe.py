"""The linear probe: a linear classifier on frozen image features, trained by one of two methods."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from flipscale.data.samples.stream import default_workers
from flipscale.distributed.world import World
from flipscale.evaluation.decoding import Decoding
from flipscale.interop.loaded_model import LoadedModel
from flipscale.transfer.augmented_batches import AugmentedBatches
from flipscale.transfer.image_features import (
    FeatureKind,
    ImageFeatures,
    ProgressCallback,
    encode_set,
    no_progress,
)
from flipscale.transfer.labelled_images import TrainTestSets
from flipscale.transfer.lars_probe import LarsRecipe, train_lars_head
from flipscale.transfer.logistic_probe import LogisticRecipe, fit
from flipscale.transfer.results import ClassifierResults, score


@dataclass(frozen=True)
class ProbeSettings:
    """Which features a probe classifies, and how it is trained."""

    recipe: LogisticRecipe | LarsRecipe = LogisticRecipe()  # noqa: RUF009
    """`LogisticRecipe` is CLIP's method (L-BFGS), `LarsRecipe` the FLIP paper's."""
    features: FeatureKind = "pooled"
    batch_size: int = 64
    """Images that a process encodes at once."""


def probe(
    trained: LoadedModel,
    sets: TrainTestSets,
    settings: ProbeSettings,
    world: World,
    progress: ProgressCallback = no_progress,
) -> ClassifierResults | None:
    """Train a linear classifier on the frozen features of a model, and score it on the test set.

    All processes of `world` call this function together. Call `logistic_probe.enable_gpu_fits` early in the
    program if a `LogisticRecipe` should be fitted on a GPU.

    Returns:
        The results on the leading process; None on all others.

    Raises:
        UserError: If the recipe does not fit the sets or the number of processes. Also if a class has no
            usable images, or the training diverges.
    """
    network = ImageFeatures(trained.model, settings.features)
    decoding = Decoding(trained.model.spec.vision.image_size, settings.batch_size)
    run = _Probe(network, sets, decoding, world, progress, trained.samples_seen)

    if isinstance(settings.recipe, LogisticRecipe):
        return run.logistic(settings.recipe)
    return run.lars(settings.recipe)


@dataclass(frozen=True)
class _Probe:
    """What both methods need."""

    network: ImageFeatures
    sets: TrainTestSets
    decoding: Decoding
    world: World
    progress: ProgressCallback
    samples_seen: int | None

    def logistic(self, recipe: LogisticRecipe) -> ClassifierResults | None:
        """Encode both sets on all processes; only the leading process fits."""
        train, test = (
            encode_set(self.network, images, self.decoding, self.world, self.progress) for images in self.sets
        )
        if not self.world.leads:
            return None

        fits = recipe.most_fits
        fitted = fit(
            train.outputs,
            train.labels,
            test.outputs,
            recipe,
            lambda done: self.progress("fitting", done, fits),
        )
        return {
            "task": "linear_probe",
            "method": "lbfgs",
            "samples_seen": self.samples_seen,
            "settings": {
                "features": self.network.kind,
                "c": fitted.c,
                "swept": recipe.c is None,
                "max_iter": recipe.max_iter,
            },
            "iterations": fitted.iterations,
            "converged": fitted.converged,
            "train": {
                "data": self.sets.train.data,
                "samples": len(train.labels),
                "skipped": train.skipped.count,
            },
            "test": score(self.sets.test.data, fitted.logits, test),
        }

    def lars(self, recipe: LarsRecipe) -> ClassifierResults | None:
        """Train on random views on all processes, and score the centre crops of the test set."""
        train, test = self.sets
        recipe.passes.check(len(train.samples), self.world.size)
        workers = default_workers(self.world.cores)
        batches = AugmentedBatches(train, recipe.passes, self.decoding.image_size, self.world, workers)
        head = train_lars_head(self.network, batches, train.classes, recipe, self.world, self.progress)

        encoded = encode_set(self.network, test, self.decoding, self.world, self.progress)
        if not self.world.leads:
            return None

        return {
            "task": "linear_probe",
            "method": "lars",
            "samples_seen": self.samples_seen,
            "settings": {"features": self.network.kind, **asdict(recipe)},
            "train": {"data": train.data, "samples": len(train.samples)},
            "test": score(test.data, head(encoded.outputs).detach(), encoded),
        }
