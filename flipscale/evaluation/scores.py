"""The scores in a document of `flipscale.evaluation.evaluate`, one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Score:
    kind: Literal["zero_shot", "retrieval"]
    set: str
    measure: str
    value: float  # share of 1
    chance: float | None
    """What guessing would score."""
    images: int
    samples: int | None
    """Samples seen in training."""
    leading: bool
    """Whether it stands for its set where there is room for few."""


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
_BESIDE = ("top1", "top5", "mean_per_class")  # of every set with one label an image
_DIRECTIONS = (("image to text", "image_to_text"), ("text to image", "text_to_image"))


def scores_of(document: Mapping[str, Any]) -> list[Score]:
    """All scores of a document, set by set; of older or damaged documents what they hold."""
    samples = document.get("samples_seen")
    scores: list[Score] = []
    for name, results in _sets(document, "zero_shot"):
        classes, images = results.get("classes"), results.get("samples", 0)
        own = str(results.get("metric", "top1"))  # documents of before it had a name hold top-1 alone
        for metric in dict.fromkeys((own, *_BESIDE)):
            value = results.get("value", results.get("top1")) if metric == own else results.get(metric)
            if not isinstance(value, (int, float)):
                continue
            guessed = {"top1": 1, "mean_per_class": 1, "top5": min(5, classes or 5)}.get(metric)
            chance = guessed / classes if classes and guessed else None
            measure, leads = NAMES.get(metric, metric), metric == own
            scores.append(Score("zero_shot", name, measure, value, chance, images, samples, leads))
    for name, results in _sets(document, "retrieval"):
        images, texts = results.get("images", 0), results.get("texts", 0)
        for direction, key in _DIRECTIONS:
            for k in (1, 5, 10):
                value = results.get(key, {}).get(f"R@{k}")
                if not isinstance(value, (int, float)):
                    continue
                chance = _chance_of_recall(key, k, images, texts) if images and texts else None
                measure = f"{direction} R@{k}"
                scores.append(Score("retrieval", name, measure, value, chance, images, samples, k in (1, 5)))
    return scores


def _chance_of_recall(direction: str, k: int, images: int, texts: int) -> float:
    """Of a guess: any of an image's own texts counts, here as many for each image."""
    if direction == "text_to_image":
        return min(1.0, k / images)
    own = round(texts / images)
    return 1 - math.comb(texts - own, min(k, texts)) / math.comb(texts, min(k, texts))


def _sets(document: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    sets = document.get(kind)
    if not isinstance(sets, Mapping):
        return []
    return [(str(name), results) for name, results in sets.items() if isinstance(results, Mapping)]
