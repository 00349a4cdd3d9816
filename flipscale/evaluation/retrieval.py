"""Image-text retrieval: recall at 1, 5 and 10, mean and median rank, both ways (FLIP, table 5)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from flipscale.evaluation.outcomes import RECALLS, Integers

_SCORES_AT_ONCE = 2**20  # 4 MiB of fp32: the full image x text matrix is never held


@dataclass(frozen=True)
class RankSummary:
    """Ranks of the right answers in one direction, from 1."""

    recall: dict[int, float]
    """Share of the queries that are answered within the first k, by k."""
    mean_rank: float
    median_rank: float
    """Rounded down if it is the mean of two ranks, as OpenCLIP does."""


def rank(
    image_features: torch.Tensor, text_features: torch.Tensor, image_of_text: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank all texts for each image and all images for each text, by dot product.

    Ties count against the model (OpenCLIP leaves them to an unstable sort). So a model that maps everything
    to one point scores 0 instead of a lucky number.

    Args:
        image_features: (N, D).
        text_features: (M, D).
        image_of_text: (M,) int64, the image that each text describes; every image has at least one text.

    Returns:
        (N,) int64: per image, the texts of other images at or above the best of its own.
        (M,) int64: per text, the other images at or above its own.
    """
    image_of_text = image_of_text.to(image_features.device)
    # Filled in place: small results kept between large temporaries would fragment the heap by gigabytes.
    to_text = torch.empty(len(image_features), dtype=torch.int64, device=image_features.device)
    to_image = torch.empty(len(text_features), dtype=torch.int64, device=image_features.device)

    for start, scores in _score_rows(image_features, text_features):
        image = torch.arange(start, start + len(scores), device=scores.device)
        own = image_of_text[None, :] == image[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        to_text[start : start + len(scores)] = ((scores >= best) & ~own).sum(dim=1)

    for start, scores in _score_rows(text_features, image_features):
        # Taken from the same matrix: a product computed otherwise could differ from itself by rounding.
        right = scores.gather(1, image_of_text[start : start + len(scores), None])
        to_image[start : start + len(scores)] = (scores >= right).sum(dim=1) - 1

    return to_text, to_image


def summarise(better: Integers) -> RankSummary:
    """Return recalls and ranks, from the number of wrong answers at or above the right one, (Q,)."""
    return RankSummary(
        recall={k: float((better < k).mean()) for k in RECALLS},
        mean_rank=float(better.mean()) + 1,
        median_rank=math.floor(np.median(better)) + 1.0,
    )


def _score_rows(queries: torch.Tensor, answers: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the number of the first query and scores (rows, len(answers)), until all queries are scored."""
    rows = max(1, _SCORES_AT_ONCE // len(answers))
    for start in range(0, len(queries), rows):
        yield start, queries[start : start + rows] @ answers.T
