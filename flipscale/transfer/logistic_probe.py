"""Linear probe as in CLIP: logistic regression on frozen image features (L-BFGS, scikit-learn)."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flipscale.errors import UserError

_log = logging.getLogger(__name__)

_DECADES = 6  # the sweep looks at strengths from 1e-6 to 1e6
_FINEST = 1 / 8  # of a decade
_HELD_OUT = 10  # one in this many images of a class decides which strength is best


@dataclass(frozen=True)
class LogisticRecipe:
    """Settings of scikit-learn's LogisticRegression."""

    c: float | None = 0.316
    """Inverse strength of the L2 penalty, as in CLIP's published code.

    None searches for the best strength on a tenth of the training images.
    """
    max_iter: int = 1000
    seed: int = 0
    """Seed of the choice of that tenth."""

    def __post_init__(self) -> None:
        if self.c is not None and not 0 < self.c < math.inf:
            raise UserError(f"--c is {self.c:g}; give a number above 0, such as 0.316, or `sweep`")

    @property
    def most_fits(self) -> int:
        """The highest number of regressions that are fitted."""
        return 1 if self.c is not None else _DECADES + 1 + 2 * round(math.log2(2 / _FINEST))


@dataclass(frozen=True)
class FittedRegression:
    """A fitted regression, applied to the test features."""

    logits: Tensor
    """(N, C)."""
    c: float
    iterations: int
    converged: bool


def enable_gpu_fits() -> None:
    """Let scikit-learn fit on CUDA tensors.

    Call it before anything imports scipy, which reads the setting only once.
    """
    os.environ.setdefault("SCIPY_ARRAY_API", "1")


def fit(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    recipe: LogisticRecipe,
    progress: Callable[[int], None] = lambda fits: None,
) -> FittedRegression:
    """Fit training features with their labels, and classify the test features.

    scikit-learn does the work, on the device of the features if it can (1.9, with `enable_gpu_fits`).

    Args:
        train: Training features (N, D).
        labels: Class numbers (N,) int64, on the CPU.
        test: Test features (M, D).
        recipe: Strength of the penalty, or a sweep.
        progress: Receives the number of fits done.

    Raises:
        UserError: If a sweep meets a class of one training image.
    """
    fits = 0

    def fit_and_report(train: Tensor, labels: Tensor, test: Tensor, c: float) -> FittedRegression:
        nonlocal fits
        fitted = _fit(train, labels, test, c=c, max_iter=recipe.max_iter)
        fits += 1
        progress(fits)
        return fitted

    c = recipe.c
    if c is None:
        held = torch.as_tensor(held_out(labels.numpy(), recipe.seed))
        rows = held.to(train.device)

        def accuracy(c: float) -> float:
            fitted = fit_and_report(train[~rows], labels[~held], train[rows], c)
            return (fitted.logits.argmax(dim=1).cpu() == labels[held]).double().mean().item()

        c = best_strength(accuracy)

    fitted = fit_and_report(train, labels, test, c)
    if not fitted.converged:
        _log.warning("the regression had not converged after %d iterations", fitted.iterations)
    return fitted


def best_strength(accuracy: Callable[[float], float]) -> float:
    """Return the strength of best accuracy; among equals, the strongest penalty (CLIP, appendix A.3).

    The search starts with seven strengths two decades apart. It then halves the interval around the best one
    until the nearest strengths are an eighth of a decade apart.

    Args:
        accuracy: Returns the accuracy for an inverse strength c.
    """
    accuracies = {float(power): accuracy(10.0**power) for power in range(-_DECADES, _DECADES + 1, 2)}
    step = 2.0
    while step > _FINEST:
        step /= 2
        best = _first_best(accuracies)
        for power in (best - step, best + step):
            if abs(power) <= _DECADES and power not in accuracies:
                accuracies[power] = accuracy(10.0**power)

    return 10.0 ** _first_best(accuracies)


def _first_best(accuracies: dict[float, float]) -> float:
    return max(sorted(accuracies), key=accuracies.__getitem__)


def held_out(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Return which images (N,) are held out: a tenth of each class, and at least one.

    Raises:
        UserError: If a class has one image.
    """
    sizes = np.bincount(labels)
    if sizes.min() < 2:
        raise UserError(
            f"class {sizes.argmin()} has one training image, and a sweep needs two or more; add "
            "images, or give --c a number"
        )

    # Shuffle, then sort by class, so that the first tenth of each class is a random one.
    mixed = np.random.default_rng(seed).permutation(len(labels))
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    held = np.zeros(len(labels), np.bool_)
    held[by_class] = place_in_class < np.repeat(np.maximum(1, sizes // _HELD_OUT), sizes)
    return held


def _fit(train: Tensor, labels: Tensor, test: Tensor, *, c: float, max_iter: int) -> FittedRegression:
    convergence_warning = _scikit_learn("exceptions").ConvergenceWarning
    with warnings.catch_warnings(), _on_device(train):
        warnings.simplefilter("ignore", convergence_warning)  # `fit` reports it once, about the last fit
        model = _scikit_learn("linear_model").LogisticRegression(C=c, max_iter=max_iter)
        if _stays_on_device(train):
            model.fit(train, labels.to(train.device))
            logits = model.decision_function(test)
        else:
            model.fit(train.cpu().numpy(), labels.numpy())
            logits = model.decision_function(test.cpu().numpy())

    scores = torch.as_tensor(logits)
    if scores.ndim == 1:  # of two classes, scikit-learn scores only the second
        scores = torch.stack([-scores, scores], dim=1)
    iterations = int(model.n_iter_[0])
    return FittedRegression(scores, c, iterations, iterations < max_iter)


def _on_device(features: Tensor) -> AbstractContextManager[None]:
    if not _stays_on_device(features):
        return nullcontext()
    return _scikit_learn().config_context(array_api_dispatch=True)


def _stays_on_device(features: Tensor) -> bool:
    version = tuple(int(part) for part in _scikit_learn().__version__.split(".")[:2])
    return features.device.type == "cuda" and version >= (1, 9) and os.environ.get("SCIPY_ARRAY_API") == "1"


def _scikit_learn(module: str = "") -> Any:
    """Import scikit-learn, or one of its modules; it has no types, and its import takes a second."""
    return import_module(f"sklearn.{module}" if module else "sklearn")
