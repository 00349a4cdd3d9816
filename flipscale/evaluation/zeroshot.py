"""Zero-shot classification: class weights from prompts, and what they make of images (FLIP, A.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from flipscale.evaluation.features import Encoder
from flipscale.evaluation.outcomes import Classified, Labelled

_PROMPTS_AT_ONCE = 8192  # keeps the prompt embeddings of 1,000 classes x 80 templates out of memory
_ROWS_AT_ONCE = 4096  # images whose logits are held together
_SHOWN = 5  # classes among which the right one is looked for


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


def classify(
    image_features: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor, samples: Sequence[str]
) -> Classified:
    """What features (N, D) of `samples` give under class weights (D, C), for int64 labels (N,) in [0, C)."""
    classes = weights.shape[1]
    shown = min(_SHOWN, classes)
    labels = labels.to(image_features.device)
    places: list[torch.Tensor] = []
    margins: list[torch.Tensor] = []
    for rows, wanted in zip(image_features.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True):
        scores = rows @ weights
        hit = scores.topk(shown, dim=1).indices == wanted[:, None]
        places.append(torch.where(hit.any(dim=1), hit.long().argmax(dim=1), _SHOWN))
        if classes == 2:
            margins.append(scores[:, 1].double() - scores[:, 0].double())
    return Classified(
        samples=tuple(samples),
        labels=labels.cpu().numpy(),
        places=torch.cat(places).cpu().numpy(),
        classes=classes,
        margins=torch.cat(margins).cpu().numpy() if margins else None,
    )


def score_labels(
    image_features: torch.Tensor, weights: torch.Tensor, labels: NDArray[np.bool_], samples: Sequence[str]
) -> Labelled:
    """The same for images that show any number of classes: labels (N, C)."""
    scores = [(rows @ weights).double().cpu() for rows in image_features.split(_ROWS_AT_ONCE)]
    return Labelled(tuple(samples), labels, torch.cat(scores).numpy())
