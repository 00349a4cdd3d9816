"""What a model did on a set, sample by sample, and every figure that follows from it (FLIP, section 4, A.2).

A figure is a function of how often each image counts: once each for the value itself, as often as it was
drawn for a bootstrap. An interval is the range that holds the middle `level` of the figures of `resamples`
sets drawn from the set's images with replacement, each with all of its captions, since these are alike; two
models are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flipscale.errors import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RECALLS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
_DRAWS_AT_ONCE = 2**22  # counts of samples that are held together, 32 MiB
_RECALL_STEPS = 10  # the 11 points of VOC's average precision are recalls of 0, 0.1, ..., 1


@dataclass(frozen=True)
class Outcome:
    """What a model did on one set. `samples` are the names of the set's usable images, in order."""

    samples: tuple[str, ...]

    def same_set(self, other: Outcome) -> bool:
        """Whether the other one answers the same questions about the same samples."""
        return type(self) is type(other) and self.samples == other.samples


@dataclass(frozen=True)
class Classified(Outcome):
    """Of images that belong to one class each."""

    labels: Integers  # (N,), in [0, classes)
    places: Integers  # (N,), classes that the model puts before the right one; 5 stands for 5 or more
    classes: int
    margins: Floats | None = None  # (N,), score of class 1 less that of class 0; only where there are two

    def same_set(self, other: Outcome) -> bool:
        return (
            super().same_set(other)
            and isinstance(other, Classified)
            and self.classes == other.classes
            and np.array_equal(self.labels, other.labels)
        )


@dataclass(frozen=True)
class Labelled(Outcome):
    """Of images that may show several classes."""

    labels: NDArray[np.bool_]  # (N, C)
    scores: Floats  # (N, C)

    def same_set(self, other: Outcome) -> bool:
        return (
            super().same_set(other)
            and isinstance(other, Labelled)
            and np.array_equal(self.labels, other.labels)
        )


@dataclass(frozen=True)
class Ranked(Outcome):
    """Of images and texts that find each other: wrong answers at or above the best right one, by query."""

    texts: tuple[str, ...]
    image_of_text: Integers  # (M,), place of the image that a text describes
    image_to_text: Integers  # (N,)
    text_to_image: Integers  # (M,)

    def same_set(self, other: Outcome) -> bool:
        return (
            super().same_set(other)
            and isinstance(other, Ranked)
            and self.texts == other.texts
            and np.array_equal(self.image_of_text, other.image_of_text)
        )


@dataclass(frozen=True)
class Difference:
    """Our figure less theirs, and the interval of that difference under a paired bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Metric:
    """`figures` takes an outcome and counts (R, N) of images and gives (R,); NaN where a draw leaves none."""

    figures: Callable[..., Floats]
    needs: str
    fits: Callable[[Outcome], bool]


def measure(outcome: Outcome, metric: str) -> float:
    """The figure of one of `METRICS`: a share of 1, and for ROC AUC and mAP an area.

    Raises UserError for an unknown metric, or one that does not fit the set's labels.
    """
    chosen = _fitting(outcome, metric)
    value = float(chosen.figures(outcome, np.ones((1, len(outcome.samples)), np.int64))[0])
    if np.isnan(value):
        raise UserError(
            f"{metric} cannot be computed, since {chosen.needs}, and these samples hold one kind alone; give "
            "more samples"
        )
    return value


def interval(
    outcome: Outcome, metric: str, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Lowest and highest figure of the middle `level` of the resampled sets.

    Raises UserError as `measure` does.
    """
    return intervals(outcome, [metric], resamples=resamples, seed=seed, level=level)[metric]


def intervals(
    outcome: Outcome, metrics: Iterable[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """`interval` of several metrics, on the same draws."""
    names = list(metrics)
    figures = _resampled(outcome, names, resamples, seed)
    return {name: _middle(figures[name], level) for name in names}


def difference(
    ours: Outcome,
    theirs: Outcome,
    metric: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """By how much our figure lies above theirs, both resampled together.

    Raises UserError as `measure` does, and where the two are not about the same samples.
    """
    if not ours.same_set(theirs):
        raise UserError(
            f"the two models were not scored on the same samples ({len(ours.samples)} and "
            f"{len(theirs.samples)} images); evaluate both on the same files with the same class names"
        )
    apart = (
        _resampled(ours, [metric], resamples, seed)[metric]
        - _resampled(theirs, [metric], resamples, seed)[metric]
    )
    return Difference(measure(ours, metric) - measure(theirs, metric), *_middle(apart, level))


def per_class(outcome: Classified) -> list[float | None]:
    """Top-1 accuracy of each class; None where it does not occur."""
    present = np.bincount(outcome.labels, minlength=outcome.classes)
    right = np.bincount(outcome.labels[outcome.places == 0], minlength=outcome.classes)
    return [r / n if n else None for r, n in zip(right.tolist(), present.tolist(), strict=True)]


def _fitting(outcome: Outcome, metric: str) -> _Metric:
    if metric not in METRICS:
        raise UserError(f"there is no metric {metric!r}; choose one of {', '.join(METRICS)}")
    chosen = METRICS[metric]
    if not chosen.fits(outcome):
        raise UserError(
            f"the metric {metric} does not fit this set, since {chosen.needs}; choose one of "
            f"{', '.join(name for name, other in METRICS.items() if other.fits(outcome))}"
        )
    return chosen


def _resampled(outcome: Outcome, metrics: list[str], resamples: int, seed: int) -> dict[str, Floats]:
    """Figures (resamples,) of each metric."""
    chosen = {name: _fitting(outcome, name) for name in metrics}
    parts = [
        {name: metric.figures(outcome, counts) for name, metric in chosen.items()}
        for counts in _counts(len(outcome.samples), resamples, seed)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in metrics}


def _counts(images: int, resamples: int, seed: int) -> Iterator[Integers]:
    """How often each image was drawn, (rows, images), until all resamples are through."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // images)
    for start in range(0, resamples, rows):
        here = min(rows, resamples - start)
        drawn = generator.integers(0, images, (here, images))
        drawn += images * np.arange(here)[:, None]
        yield np.bincount(drawn.ravel(), minlength=here * images).reshape(here, images)


def _middle(figures: Floats, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.nanquantile(figures, [tail, 1 - tail])
    return float(low), float(high)


def _share(counts: Integers, hit: NDArray[np.bool_]) -> Floats:
    return (counts @ hit.astype(np.int64)) / counts.sum(axis=1)


def _top(k: int) -> Callable[[Classified, Integers], Floats]:
    return lambda outcome, counts: _share(counts, outcome.places < k)


def _mean_per_class(outcome: Classified, counts: Integers) -> Floats:
    order = np.argsort(outcome.labels, kind="stable")
    starts = np.flatnonzero(np.diff(outcome.labels[order], prepend=-1))
    drawn = counts[:, order]
    present = np.add.reduceat(drawn, starts, axis=1)
    right = np.add.reduceat(drawn * (outcome.places[order] == 0), starts, axis=1)
    return np.divide(right, present, out=np.zeros(right.shape), where=present > 0).sum(axis=1) / (
        present > 0
    ).sum(axis=1)


def _top1_top5_mean(outcome: Classified, counts: Integers) -> Floats:
    return (_top(1)(outcome, counts) + _top(5)(outcome, counts)) / 2


def _roc_auc(outcome: Classified, counts: Integers) -> Floats:
    """Share of the (positive, negative) pairs in the right order; a tie counts half."""
    assert outcome.margins is not None
    order = np.argsort(outcome.margins, kind="stable")
    starts = np.flatnonzero(np.diff(outcome.margins[order], prepend=-np.inf))
    positive = outcome.labels[order] == 1
    drawn = counts[:, order]
    above = np.add.reduceat(drawn * positive, starts, axis=1)
    below = np.add.reduceat(drawn * ~positive, starts, axis=1)
    right = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return np.divide(right, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def _map_11_point(outcome: Labelled, counts: Integers) -> Floats:
    """VOC2007's mean average precision: over the classes, of the best precision at recalls 0, 0.1, ..., 1 or
    more. Images of equal score are found together; a class that no drawn image shows does not count."""
    total, known = np.zeros(len(counts)), np.zeros(len(counts))
    for scores, shown in zip(outcome.scores.T, outcome.labels.T, strict=True):
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
        # The best precision lies where a shown image is found last: the other ends need no look.
        ends = ends[np.diff(shown[order].cumsum()[ends], prepend=0) > 0]
        drawn = counts[:, order]
        found = (drawn * shown[order]).cumsum(axis=1)
        every = found[:, -1:]
        found, looked = found[:, ends], drawn.cumsum(axis=1)[:, ends]
        precision = np.divide(found, looked, out=np.zeros(found.shape), where=looked > 0)
        points = [
            np.where(_RECALL_STEPS * found >= step * every, precision, 0.0).max(axis=1, initial=0.0)
            for step in range(_RECALL_STEPS + 1)
        ]
        drawn_at_all = every[:, 0] > 0
        total += np.where(drawn_at_all, np.mean(points, axis=0), 0.0)
        known += drawn_at_all
    return np.divide(total, known, out=np.full(len(counts), np.nan), where=known > 0)


def _image_to_text(k: int) -> Callable[[Ranked, Integers], Floats]:
    return lambda outcome, counts: _share(counts, outcome.image_to_text < k)


def _text_to_image(k: int) -> Callable[[Ranked, Integers], Floats]:
    """An image that is drawn brings all of its texts."""

    def figures(outcome: Ranked, counts: Integers) -> Floats:
        images = len(outcome.samples)
        texts = np.bincount(outcome.image_of_text, minlength=images)
        found = np.bincount(outcome.image_of_text[outcome.text_to_image < k], minlength=images)
        return (counts @ found) / (counts @ texts)

    return figures


def _recall(figures: Callable[[Ranked, Integers], Floats]) -> _Metric:
    ranks = "it ranks images and texts against each other"
    return _Metric(figures, ranks, lambda outcome: isinstance(outcome, Ranked))


def _single(outcome: Outcome) -> bool:
    return isinstance(outcome, Classified)


_ONE_LABEL = "it needs one label for each image"
METRICS: dict[str, _Metric] = {
    "top1": _Metric(_top(1), _ONE_LABEL, _single),
    "top5": _Metric(_top(5), _ONE_LABEL, _single),
    "mean_per_class": _Metric(_mean_per_class, _ONE_LABEL, _single),
    "top1_top5_mean": _Metric(_top1_top5_mean, _ONE_LABEL, _single),
    "roc_auc": _Metric(
        _roc_auc,
        "it needs images of two classes",
        lambda outcome: isinstance(outcome, Classified) and outcome.margins is not None,
    ),
    "map_11_point": _Metric(
        _map_11_point,
        "it needs images with any number of labels each",
        lambda outcome: isinstance(outcome, Labelled),
    ),
    **{f"image_to_text_R@{k}": _recall(_image_to_text(k)) for k in RECALLS},
    **{f"text_to_image_R@{k}": _recall(_text_to_image(k)) for k in RECALLS},
}
