"""Zero-shot classification: class weights from prompts, and the scores that they give images (FLIP, A.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from flipscale.evaluation.features import Encoder
from flipscale.evaluation.outcomes import Classified, Labelled

_PROMPTS_AT_ONCE = 8192  # bounds the memory of the prompt embeddings: 1,000 classes x 80 templates are 80,000
_ROWS_AT_ONCE = 4096  # images whose logits are held together
_PLACES = 5  # classes among which the right one is searched: enough for top-5


def classifier_weights(encoder: Encoder, classnames: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Return the class weights (D, C), fp32.

    A class's weights are its prompt embeddings, averaged over the templates and normalised again.

    Args:
        encoder: The model.
        classnames: C names.
        templates: Prompts, in each of which the class name replaces `{}`.
    """
    step = max(1, _PROMPTS_AT_ONCE // len(templates))
    weights: list[torch.Tensor] = []
    for start in range(0, len(classnames), step):
        names = classnames[start : start + step]
        prompts = [template.replace("{}", name) for name in names for template in templates]
        embeddings = encoder.texts(prompts)
        weights.append(
            functional.normalize(embeddings.reshape(len(names), len(templates), -1).mean(dim=1), dim=1)
        )

    return torch.cat(weights).T


def classify(
    image_features: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor, samples: Sequence[str]
) -> Classified:
    """Classify images that have one label each.

    Args:
        image_features: (N, D).
        weights: Class weights (D, C).
        labels: (N,) int64, in [0, C).
        samples: Names of the N images.
    """
    classes = weights.shape[1]
    nearest = min(_PLACES, classes)
    labels = labels.to(image_features.device)

    places: list[torch.Tensor] = []
    margins: list[torch.Tensor] = []
    for rows, right in zip(_rows(image_features), _rows(labels), strict=True):
        scores = rows @ weights
        hit = scores.topk(nearest, dim=1).indices == right[:, None]
        places.append(torch.where(hit.any(dim=1), hit.long().argmax(dim=1), _PLACES))
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
    """Score images that show any number of classes.

    Args:
        image_features: (N, D).
        weights: Class weights (D, C).
        labels: (N, C), whether an image shows a class.
        samples: Names of the N images.
    """
    scores = [(rows @ weights).double().cpu() for rows in _rows(image_features)]
    return Labelled(tuple(samples), labels, torch.cat(scores).numpy())


def _rows(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor, _ROWS_AT_ONCE)
