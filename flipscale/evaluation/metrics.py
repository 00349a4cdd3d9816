"""Every metric of a set, as a function of a model's outcome and of how often each image counts.

Each image counts once for the value itself, and as often as it was drawn for a bootstrap (see `bootstrap`).
The metrics are those of the FLIP paper (section 4, A.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from flipscale.errors import UserError
from flipscale.evaluation.outcomes import RECALLS, Classified, Floats, Integers, Labelled, Outcome, Ranked

_RECALL_STEPS = 10  # the 11 points of VOC's average precision are recalls of 0, 0.1, ..., 1


@dataclass(frozen=True)
class Metric:
    """One metric of a set."""

    values: Callable[[Outcome, Integers], Floats]
    """Maps an outcome and counts (R, N) of its images to R values.

    A value is NaN if the counts leave no image that matters.
    """
    needs: str
    """What the labels of a set must be, for messages."""
    fits: Callable[[Outcome], bool]
    """Returns whether the metric can be computed from an outcome."""


def measure(outcome: Outcome, metric: str) -> float:
    """Return the value of one of `METRICS`: a share of 1, and for ROC AUC and mAP an area.

    Raises:
        UserError: If the metric is unknown, or does not fit the set's labels.
    """
    definition = fitting_metric(outcome, metric)
    value = float(definition.values(outcome, np.ones((1, len(outcome.samples)), np.int64))[0])
    if np.isnan(value):
        raise UserError(
            f"{metric} cannot be computed, since {definition.needs}, and these samples are all of one kind; "
            "give more samples"
        )
    return value


def per_class(outcome: Classified) -> list[float | None]:
    """Return the top-1 accuracy of each class; None for a class that does not occur."""
    present = np.bincount(outcome.labels, minlength=outcome.classes)
    right = np.bincount(outcome.labels[outcome.places == 0], minlength=outcome.classes)
    return [r / n if n else None for r, n in zip(right.tolist(), present.tolist(), strict=True)]


def fitting_metric(outcome: Outcome, metric: str) -> Metric:
    """Return a metric by its name.

    Raises:
        UserError: If the metric is unknown, or does not fit the set's labels.
    """
    if metric not in METRICS:
        raise UserError(f"there is no metric {metric!r}; choose one of {', '.join(METRICS)}")
    definition = METRICS[metric]
    if not definition.fits(outcome):
        raise UserError(
            f"the metric {metric} does not fit this set, since {definition.needs}; choose one of "
            f"{', '.join(name for name, other in METRICS.items() if other.fits(outcome))}"
        )
    return definition


def _share(counts: Integers, hit: NDArray[np.bool_]) -> Floats:
    return (counts @ hit.astype(np.int64)) / counts.sum(axis=1)


def _top(k: int) -> Callable[[Classified, Integers], Floats]:
    return lambda outcome, counts: _share(counts, outcome.places < k)


def _mean_per_class(outcome: Classified, counts: Integers) -> Floats:
    """Return the mean over the drawn classes of their own top-1 accuracy."""
    order = np.argsort(outcome.labels, kind="stable")
    starts = np.flatnonzero(np.diff(outcome.labels[order], prepend=-1))

    drawn = counts[:, order]
    present = np.add.reduceat(drawn, starts, axis=1)
    right = np.add.reduceat(drawn * (outcome.places[order] == 0), starts, axis=1)

    shares = np.divide(right, present, out=np.zeros(right.shape), where=present > 0)
    return shares.sum(axis=1) / (present > 0).sum(axis=1)


def _top1_top5_mean(outcome: Classified, counts: Integers) -> Floats:
    return (_top(1)(outcome, counts) + _top(5)(outcome, counts)) / 2


def _roc_auc(outcome: Classified, counts: Integers) -> Floats:
    """Return the share of the (positive, negative) pairs in the right order; a tie counts half."""
    assert outcome.margins is not None
    order = np.argsort(outcome.margins, kind="stable")
    starts = np.flatnonzero(np.diff(outcome.margins[order], prepend=-np.inf))
    positive = outcome.labels[order] == 1

    # Positive and negative images that were drawn, by equal margins from low to high.
    drawn = counts[:, order]
    positives = np.add.reduceat(drawn * positive, starts, axis=1)
    negatives = np.add.reduceat(drawn * ~positive, starts, axis=1)

    right = (positives * (negatives.cumsum(axis=1) - negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(right, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def _map_11_point(outcome: Labelled, counts: Integers) -> Floats:
    """Return VOC2007's mean average precision.

    The average precision of a class is the mean of its best precisions at recalls of at least 0, 0.1, ..., 1.
    Images of equal score are retrieved together. A class that no drawn image shows does not count.
    """
    total = np.zeros(len(counts))
    known = np.zeros(len(counts))
    for scores, shown in zip(outcome.scores.T, outcome.labels.T, strict=True):
        precision, occurs = _average_precision(scores, shown, counts)
        total += np.where(occurs, precision, 0.0)
        known += occurs

    return np.divide(total, known, out=np.full(len(counts), np.nan), where=known > 0)


def _average_precision(
    scores: Floats, shown: NDArray[np.bool_], counts: Integers
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the average precision of one class (R,), and whether a drawn image shows it (R,).

    Args:
        scores: (N,), of the class.
        shown: (N,), whether an image shows the class.
        counts: (R, N), how often each image was drawn.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    # The best precision is at an end that retrieves a shown image: the other ends can be left out.
    ends = ends[np.diff(shown[order].cumsum()[ends], prepend=0) > 0]

    drawn = counts[:, order]
    hits = (drawn * shown[order]).cumsum(axis=1)
    every = hits[:, -1:]
    hits = hits[:, ends]
    retrieved = drawn.cumsum(axis=1)[:, ends]
    precision = np.divide(hits, retrieved, out=np.zeros(hits.shape), where=retrieved > 0)

    points = [
        np.where(_RECALL_STEPS * hits >= step * every, precision, 0.0).max(axis=1, initial=0.0)
        for step in range(_RECALL_STEPS + 1)
    ]
    return np.mean(points, axis=0), every[:, 0] > 0


def _image_to_text(k: int) -> Callable[[Ranked, Integers], Floats]:
    return lambda outcome, counts: _share(counts, outcome.image_to_text < k)


def _text_to_image(k: int) -> Callable[[Ranked, Integers], Floats]:
    """Return recall at k; an image that is drawn brings all of its texts."""

    def values(outcome: Ranked, counts: Integers) -> Floats:
        images = len(outcome.samples)
        texts = np.bincount(outcome.image_of_text, minlength=images)
        hits = np.bincount(outcome.image_of_text[outcome.text_to_image < k], minlength=images)
        return (counts @ hits) / (counts @ texts)

    return values


def _single(values: Callable[[Classified, Integers], Floats]) -> Metric:
    return Metric(
        lambda outcome, counts: values(cast("Classified", outcome), counts),
        "it needs one label for each image",
        lambda outcome: isinstance(outcome, Classified),
    )


def _recall(values: Callable[[Ranked, Integers], Floats]) -> Metric:
    return Metric(
        lambda outcome, counts: values(cast("Ranked", outcome), counts),
        "it ranks images and texts against each other",
        lambda outcome: isinstance(outcome, Ranked),
    )


METRICS: dict[str, Metric] = {
    "top1": _single(_top(1)),
    "top5": _single(_top(5)),
    "mean_per_class": _single(_mean_per_class),
    "top1_top5_mean": _single(_top1_top5_mean),
    "roc_auc": Metric(
        lambda outcome, counts: _roc_auc(cast("Classified", outcome), counts),
        "it needs images of two classes",
        lambda outcome: isinstance(outcome, Classified) and outcome.margins is not None,
    ),
    "map_11_point": Metric(
        lambda outcome, counts: _map_11_point(cast("Labelled", outcome), counts),
        "it needs images with any number of labels each",
        lambda outcome: isinstance(outcome, Labelled),
    ),
    **{f"image_to_text_R@{k}": _recall(_image_to_text(k)) for k in RECALLS},
    **{f"text_to_image_R@{k}": _recall(_text_to_image(k)) for k in RECALLS},
}
"""The metrics by the names that jobs and documents use."""
