"""Zero-shot classification: class weights from prompts, and their accuracy (FLIP, A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from flipscale.evaluation.features import Encoder

_PROMPTS_AT_ONCE = 8192  # keeps the prompt embeddings of 1,000 classes x 80 templates out of memory
_ROWS_AT_ONCE = 4096  # images whose logits are held together


@dataclass(frozen=True)
class ZeroShotResult:
    """Accuracies as shares of 1."""

    top1: float
    top5: float  # 1.0 where there are 5 classes or fewer
    mean_per_class: float  # mean over the classes that occur of their own top-1
    per_class: list[float | None]  # top-1 of each class; None where it does not occur
    samples: int
    classes: int


def classifier_weights(encoder: Encoder, classnames: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """(D, C) fp32: each class's prompt embeddings, averaged over the templates and normalised again.

    Every template holds `{}`, which the class name replaces.
    """
    step = max(1, _PROMPTS_AT_ONCE // len(templates))
    weights: list[torch.Tensor] = []
    for start in range(0, len(classnames), step):
        names = classnames[start : start + step]
        prompts = [template.replace("{}", name) for name in names for template in templates]
        embeddings = encoder.texts(prompts)
        weights.append(functional.normalize(embeddings.unflatten(0, (len(names), -1)).mean(dim=1), dim=1))
    return torch.cat(weights).T


def classify(image_features: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor) -> ZeroShotResult:
    """Accuracy of features (N, D) under class weights (D, C), for int64 labels (N,) in [0, C)."""
    classes = weights.shape[1]
    labels = labels.to(image_features.device)
    hits = [
        (rows @ weights).topk(min(5, classes), dim=1).indices == wanted[:, None]
        for rows, wanted in zip(image_features.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True)
    ]
    hit = torch.cat(hits)
    present = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[hit[:, 0]], minlength=classes)
    per_class = [r / n if n else None for r, n in zip(right.tolist(), present.tolist(), strict=True)]
    known = [accuracy for accuracy in per_class if accuracy is not None]
    return ZeroShotResult(
        top1=int(hit[:, 0].sum()) / len(labels),
        top5=int(hit.sum()) / len(labels),
        mean_per_class=sum(known) / len(known),
        per_class=per_class,
        samples=len(labels),
        classes=classes,
    )
