"""The scores in a document of `flipscale.evaluation.evaluate`, one by one."""

from __future__ import annotations

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


_ZERO_SHOT = (("top-1", "top1", True), ("top-5", "top5", False), ("mean per class", "mean_per_class", False))
_DIRECTIONS = (("image to text", "image_to_text"), ("text to image", "text_to_image"))


def scores_of(document: Mapping[str, Any]) -> list[Score]:
    """All scores of a document, set by set; of older or damaged documents what they hold."""
    samples = document.get("samples_seen")
    scores: list[Score] = []
    for name, results in _sets(document, "zero_shot"):
        classes, images = results.get("classes"), results.get("samples", 0)
        for measure, key, leading in _ZERO_SHOT:
            if not isinstance(results.get(key), (int, float)):
                continue
            guessed = min(5, classes) if key == "top5" and classes else 1
            chance = guessed / classes if classes else None
            scores.append(Score("zero_shot", name, measure, results[key], chance, images, samples, leading))
    for name, results in _sets(document, "retrieval"):
        images, texts = results.get("images", 0), results.get("texts", 0)
        for direction, key in _DIRECTIONS:
            for k in (1, 5, 10):
                value = results.get(key, {}).get(f"R@{k}")
                if not isinstance(value, (int, float)):
                    continue
                pool = texts if key == "image_to_text" else images
                chance = min(1.0, k / pool) if pool else None
                measure = f"{direction} R@{k}"
                scores.append(Score("retrieval", name, measure, value, chance, images, samples, k in (1, 5)))
    return scores


def _sets(document: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    sets = document.get(kind)
    if not isinstance(sets, Mapping):
        return []
    return [(str(name), results) for name, results in sets.items() if isinstance(results, Mapping)]
