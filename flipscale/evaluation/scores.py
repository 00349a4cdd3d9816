"""The single scores of an evaluation document, with what guessing would score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "top1_top5_mean": "mean of top-1 and top-5",
    "roc_auc": "ROC AUC",
    "map_11_point": "11-point mAP",
    "image_to_text_R@1": "image to text R@1",
    "text_to_image_R@1": "text to image R@1",
}
"""What metrics are called in pages and tables."""

_ALWAYS = ("top1", "top5", "mean_per_class")  # metrics of every set with one label per image
_DIRECTIONS = (("image to text", "image_to_text"), ("text to image", "text_to_image"))

_Fields = Mapping[str, object]


@dataclass(frozen=True)
class Score:
    """One score of one set."""

    kind: Literal["zero_shot", "retrieval"]
    set: str
    measure: str
    """What is measured, as people write it."""
    value: float
    """Share of 1."""
    chance: float | None
    """What guessing would score; None if it is not known."""
    images: int
    samples: int | None
    """Samples that the model has seen in training."""
    leading: bool
    """Whether the score stands for its set if there is room for only a few."""


def scores_of(document: Mapping[str, object]) -> list[Score]:
    """Return all scores of a document, set by set.

    Older and damaged documents give the scores that they have.
    """
    samples = _integer(document, "samples_seen")
    scores: list[Score] = []
    for name, results in _sets(document, "zero_shot"):
        scores += _zero_shot_scores(name, results, samples)
    for name, results in _sets(document, "retrieval"):
        scores += _retrieval_scores(name, results, samples)
    return scores


def _zero_shot_scores(name: str, results: _Fields, samples: int | None) -> Iterator[Score]:
    classes = _integer(results, "classes")
    images = _integer(results, "samples") or 0
    # Documents from before the metric had a field hold only top-1.
    own = str(results.get("metric", "top1"))

    for metric in dict.fromkeys((own, *_ALWAYS)):
        value = results.get("value", results.get("top1")) if metric == own else results.get(metric)
        if isinstance(value, (int, float)):
            chance = _chance_of_metric(metric, classes)
            measure = NAMES.get(metric, metric)
            yield Score("zero_shot", name, measure, value, chance, images, samples, metric == own)


def _retrieval_scores(name: str, results: _Fields, samples: int | None) -> Iterator[Score]:
    images = _integer(results, "images") or 0
    texts = _integer(results, "texts") or 0

    for direction, key in _DIRECTIONS:
        recalls = _fields(results.get(key))
        for k in (1, 5, 10):
            value = recalls.get(f"R@{k}")
            if isinstance(value, (int, float)):
                chance = _chance_of_recall(key, k, images, texts) if images and texts else None
                measure = f"{direction} R@{k}"
                yield Score("retrieval", name, measure, value, chance, images, samples, k in (1, 5))


def _chance_of_metric(metric: str, classes: int | None) -> float | None:
    if not classes:
        return None
    guesses = {"top1": 1, "mean_per_class": 1, "top5": min(5, classes)}
    return guesses[metric] / classes if metric in guesses else None


def _chance_of_recall(direction: str, k: int, images: int, texts: int) -> float:
    """Return the recall of a guess; all images are taken to have the same number of texts."""
    if direction == "text_to_image":
        return min(1.0, k / images)
    own = round(texts / images)
    return 1 - math.comb(texts - own, min(k, texts)) / math.comb(texts, min(k, texts))


def _sets(document: _Fields, kind: str) -> Iterator[tuple[str, _Fields]]:
    for name, results in _fields(document.get(kind)).items():
        if isinstance(results, Mapping):
            yield name, _fields(cast("object", results))


def _fields(value: object) -> _Fields:
    """Return a JSON object; an empty one in place of anything else."""
    return cast("_Fields", value) if isinstance(value, Mapping) else {}


def _integer(fields: _Fields, name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) else None
