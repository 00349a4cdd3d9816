"""The document of an evaluation: its fields, and their JSON Schema (`flipscale schema evaluation`)."""

from __future__ import annotations

from pydantic import TypeAdapter
from typing_extensions import TypedDict

FORMAT = 1
"""Number of the format; it rises if a field changes its meaning or is removed, not if one is added."""
SMALL = 50_000
"""Largest number of images for which intervals are computed, by bootstrap."""

Interval = list[float] | None
"""Lowest and highest value of the middle 95 %; None if the set is not small."""


class ZeroShotScores(TypedDict):
    """Scores of a classification set, as shares of 1.

    Fields that need one label per image are None for a set with several labels per image.
    """

    metric: str
    value: float
    interval: Interval
    top1: float | None
    top5: float | None
    mean_per_class: float | None
    intervals: dict[str, Interval]
    per_class: list[float | None] | None
    samples: int
    classes: int
    templates: int
    skipped: int
    skipped_examples: list[str]


DirectionScores = TypedDict(
    "DirectionScores",
    {
        "R@1": float,
        "R@5": float,
        "R@10": float,
        "mean_rank": float,
        "median_rank": float,
        "intervals": dict[str, Interval],
    },
)


class RetrievalScores(TypedDict):
    """Scores of an image-caption set: recalls as shares of 1, ranks from 1."""

    image_to_text: DirectionScores
    text_to_image: DirectionScores
    images: int
    texts: int
    distinct_texts: int
    skipped: int
    skipped_examples: list[str]


class MaskedViews(TypedDict):
    """How much of their patches was hidden when the images were scored."""

    mask_ratio: float
    ensemble: bool
    seed: int


class EvaluationDocument(TypedDict):
    """Scores of one model on the sets of a job, by the names of the sets."""

    format: int
    samples_seen: int | None
    views: MaskedViews | None
    skipped: int
    zero_shot: dict[str, ZeroShotScores]
    retrieval: dict[str, RetrievalScores]


def evaluation_schema() -> dict[str, object]:
    """Return the JSON Schema of the document."""
    return TypeAdapter(EvaluationDocument).json_schema()
