"""The tables of an evaluation, for `flipscale eval`."""

from __future__ import annotations

from flipscale.cli.console import print_table
from flipscale.evaluation.document import (
    DirectionScores,
    EvaluationDocument,
    Interval,
    RetrievalScores,
    ZeroShotScores,
)
from flipscale.formatting import format_interval, format_percent
from flipscale.terminal import say

_ZERO_SHOT = (
    *("zero-shot", "images", "classes", "metric", "value", "95 %"),
    *("top-1", "top-5", "mean per class", "chance", "skipped"),
)
_RETRIEVAL = (
    *("retrieval", "direction", "images", "texts"),
    *("R@1", "95 %", "R@5", "R@10", "median rank", "skipped"),
)


def print_evaluation(document: EvaluationDocument) -> None:
    """Print the scores of one model, in one table per kind of set."""
    views = document["views"]
    if views is not None:
        kind = "averaged over views" if views["ensemble"] else "one view"
        say(f"with {views['mask_ratio']:.0%} of the patches hidden, {kind}")

    zero_shot = [_zero_shot_row(name, scores) for name, scores in document["zero_shot"].items()]
    if zero_shot:
        print_table(_ZERO_SHOT, zero_shot)

    retrieval = [row for name, scores in document["retrieval"].items() for row in _directions(name, scores)]
    if retrieval:
        print_table(_RETRIEVAL, retrieval)


def _zero_shot_row(name: str, scores: ZeroShotScores) -> list[str]:
    absent = (scores["per_class"] or []).count(None)
    top1 = scores["top1"]
    return [
        name,
        str(scores["samples"]),
        str(scores["classes"]) + (f" ({absent} without images)" if absent else ""),
        scores["metric"],
        format_percent(scores["value"]),
        _interval(scores["interval"]),
        _share(top1),
        _share(scores["top5"]),
        _share(scores["mean_per_class"]),
        "" if top1 is None else format_percent(1 / scores["classes"]),
        str(scores["skipped"]),
    ]


def _directions(name: str, scores: RetrievalScores) -> list[list[str]]:
    return [
        _direction_row(name, "image to text", scores["image_to_text"], scores),
        _direction_row(name, "text to image", scores["text_to_image"], scores),
    ]


def _direction_row(name: str, way: str, direction: DirectionScores, scores: RetrievalScores) -> list[str]:
    return [
        name,
        way,
        str(scores["images"]),
        str(scores["texts"]),
        format_percent(direction["R@1"]),
        _interval(direction["intervals"]["R@1"]),
        format_percent(direction["R@5"]),
        format_percent(direction["R@10"]),
        f"{direction['median_rank']:g}",
        str(scores["skipped"]),
    ]


def _share(share: float | None) -> str:
    return "" if share is None else format_percent(share)


def _interval(interval: Interval) -> str:
    return "" if interval is None else format_interval((interval[0], interval[1]))
