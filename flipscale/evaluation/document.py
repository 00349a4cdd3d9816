"""The document of an evaluation: its fields, and their JSON Schema (`flipscale schema evaluation`)."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

FORMAT = 1  # raised when a field changes its meaning or goes; fields may be added without
SMALL = 50_000  # a bootstrap is made for figures over at most this many images

Interval = list[float] | None  # lowest and highest of the middle 95 %; None where the set is not small


class ZeroShotScores(TypedDict):
    """Shares of 1. What needs one label an image is None for a set with several."""

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
    """Recalls as shares of 1, ranks from 1."""

    image_to_text: DirectionScores
    text_to_image: DirectionScores
    images: int
    texts: int
    distinct_texts: int
    skipped: int
    skipped_examples: list[str]


class MaskedViews(TypedDict):
    """With which part of their patches hidden the images were scored."""

    mask_ratio: float
    ensemble: bool
    seed: int


class EvaluationDocument(TypedDict):
    """Scores of one model on the sets of a job, by their names."""

    format: int
    samples_seen: int | None
    views: MaskedViews | None
    skipped: int
    zero_shot: dict[str, ZeroShotScores]
    retrieval: dict[str, RetrievalScores]


def evaluation_schema() -> dict[str, Any]:
    """The JSON Schema of the document."""
    return TypeAdapter(EvaluationDocument).json_schema()
