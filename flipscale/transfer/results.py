"""The scores of a classifier on its test set, and the JSON document of a probe or a fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from flipscale.evaluation.bootstrap import intervals
from flipscale.evaluation.metrics import measure, per_class
from flipscale.evaluation.outcomes import Classified
from flipscale.transfer.image_features import SetOutputs

_METRICS = ("top1", "top5", "mean_per_class")
_PLACES = 5
"""Classes among which the right one is searched: enough for top-5."""


class TrainingSet(TypedDict):
    """The set that a classifier was trained on."""

    data: str
    samples: int
    skipped: NotRequired[int]
    """Unusable images; present if the images were encoded once, before the training."""


class ClassifierScores(TypedDict):
    """The accuracies on the test set, as shares of 1."""

    data: str
    top1: float
    top5: float
    mean_per_class: float
    intervals: dict[str, list[float]]
    """Ends of the 95 % bootstrap interval of each metric."""
    per_class: list[float | None]
    samples: int
    classes: int
    skipped: int
    skipped_examples: list[str]


class ClassifierResults(TypedDict):
    """The document of `flipscale probe` and `flipscale finetune`."""

    task: Literal["linear_probe", "finetune"]
    method: Literal["lbfgs", "lars", "adamw"]
    samples_seen: int | None
    """Samples that the model had seen in pre-training; None for an OpenCLIP directory."""
    settings: Mapping[str, object]
    iterations: NotRequired[int]
    """Iterations of L-BFGS; only for that method, like `converged`."""
    converged: NotRequired[bool]
    train: TrainingSet
    test: ClassifierScores


def score(data: str, logits: Tensor, test: SetOutputs) -> ClassifierScores:
    """Return the accuracies of logits (N, C) on the N test images, with 95 % bootstrap intervals.

    Args:
        data: Path of the test set, as the user wrote it.
        logits: (N, C), one row per image of `test`.
        test: Names and labels of the images.
    """
    classes = logits.shape[1]
    best = logits.cpu().topk(min(_PLACES, classes), dim=1).indices
    hit = best == test.labels[:, None]
    places = torch.where(hit.any(dim=1), hit.int().argmax(dim=1), _PLACES)
    outcome = Classified(test.names, test.labels.numpy(), places.numpy().astype(np.int64), classes)

    return {
        "data": data,
        "top1": measure(outcome, "top1"),
        "top5": measure(outcome, "top5"),
        "mean_per_class": measure(outcome, "mean_per_class"),
        "intervals": {name: list(ends) for name, ends in intervals(outcome, _METRICS).items()},
        "per_class": per_class(outcome),
        "samples": len(test.names),
        "classes": classes,
        "skipped": test.skipped.count,
        "skipped_examples": test.skipped.examples,
    }
